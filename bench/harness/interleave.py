"""How the CPU suite measures: candidates take turns, one step each per round; ratios are taken within a round.

On a shared machine, a benchmark that runs one candidate after another also compares what other processes did in the
meantime. Here a round times one step of every candidate, in a new random order, and a ratio divides two times of the
same round. The report gives the median over the rounds, with quartiles. Where the candidates do not all fit in memory
at once, the baselines are measured in memory groups (`bench.harness.memory_groups`); FusedRAdam and the roofline are in
each group.

- Before the first round every candidate takes its first steps, so that RAdam is rectified (from step 6 on, with
  β2 = 0.999) and lazy initialization is over. Each candidate has its own parameters and state. The gradients, which no
  step writes, are shared and stay the same from step to step.
- Garbage is collected before the rounds and not during them.
- Before each round the suite waits until other processes leave the CPUs idle, for at most `Plan.quiet_timeout` seconds
  per case. The wait does not depend on any candidate's times, so it favours none; fewer rounds are noisy.
- Before each step the caches are brought into the state in which a training loop leaves them
  (`bench.harness.cache_state`).
- After the rounds, the parameters that the timed steps made are compared with what torch.optim.RAdam and the
  ``reference`` backend make of the same start in as many steps (`bench.harness.correctness`).

Times are in seconds. Only the call of ``step()`` runs between the two readings of the clock.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from bench.harness.cache_state import USED, before_step
from bench.harness.correctness import CorrectnessCheck, compare
from bench.harness.machine import Load, free_garbage, wait_for_quiet
from bench.harness.measure import Progress, no_collection, no_progress, why_skipped
from bench.harness.memory_groups import divide
from bench.harness.plan import Plan
from bench.optimizers.candidates import Candidate, Runner, start
from bench.workloads.cases import Case

WARMUP = 3
"""Untimed rounds; their length decides how many timed ones fit the budget."""


@dataclass
class Measurement:
    """The rounds of one case.

    Attributes:
        caches: what they held when a step began, one of `bench.harness.cache_state.STATES`.
        memory_groups: for each, the time of a candidate's step in each round.
        skipped: by candidate, why it did not run.
        correctness: whether the timed steps computed the right update.
        others: for each round, the part of the machine's CPU time that other processes took, where that is known.
        waited: seconds spent waiting for other processes.
    """

    case: Case
    caches: str
    memory_groups: list[dict[str, list[float]]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    correctness: CorrectnessCheck = field(default_factory=lambda: CorrectnessCheck({}))
    others: list[float] = field(default_factory=list)
    waited: float = 0.0

    @property
    def candidates(self) -> list[str]:
        """The candidates that ran, in the order of measuring."""
        return list(dict.fromkeys(name for group in self.memory_groups for name in group))

    def seconds(self, name: str) -> list[float]:
        """A candidate's times, of all memory groups."""
        return [value for group in self.memory_groups for value in group.get(name, [])]

    def ratios(self, over: str, under: str) -> list[float]:
        """Round by round, one candidate's time divided by another's; empty if no group has both."""
        both = (group for group in self.memory_groups if over in group and under in group)
        return [a / b for group in both for a, b in zip(group[over], group[under], strict=True)]


def set_up(candidate: Candidate, case: Case, values: list[Tensor], grads: list[Tensor]) -> Runner:
    """Starts a candidate from copies of the values, and of the gradients only if its steps change them."""
    own_grads = [grad.clone() for grad in grads] if candidate.writes_grads else grads
    return start(candidate, case, [value.clone() for value in values], own_grads)


def measure(case: Case, candidates: Sequence[Candidate], plan: Plan, progress: Progress = no_progress) -> Measurement:
    """Measures one case; notes in the result which candidates could not run.

    Raises:
        NotEnoughMemory: before anything is allocated.
        Exception: FusedRAdam failed; what a baseline raises only leaves that baseline out.
    """
    groups, skipped = divide(case, candidates)
    found = Measurement(case, plan.caches or case.caches, skipped=skipped)
    values = case.values(scale=0.02, seed=plan.seed)
    grads = case.values(scale=0.01, seed=plan.seed + 1)
    for number, members in enumerate(groups, 1):
        which = f" {number}/{len(groups)}" if len(groups) > 1 else ""
        runners: dict[str, Runner] = {}
        for place, candidate in enumerate(members):
            progress(f"first steps{which}", place, len(members))
            try:
                runners[candidate.name] = set_up(candidate, case, values, grads)
            except Exception as error:
                reason = why_skipped(error)
                if candidate.ours and reason.startswith("failed"):
                    raise
                found.skipped[candidate.name] = reason
        turns = _Turns(runners, plan, case.share / len(groups), found, lambda *at, w=which: progress(f"rounds{w}", *at))
        turns.warm_up()
        turns.measure()
        progress(f"checking{which}", 0, 1)
        found.correctness.merge(compare(members, runners, values, grads))
        # A step may own its optimizer through a reference cycle; the next group needs the memory.
        del turns, runners
        free_garbage()
    return found


class _Turns:
    """The rounds of one memory group; they are added to `found`."""

    def __init__(
        self,
        runners: dict[str, Runner],
        plan: Plan,
        share: float,
        found: Measurement,
        progress: Callable[[int, int], None],
    ) -> None:
        self._runners = runners
        self._order = list(runners)
        self._shuffle = random.Random(plan.seed + len(found.memory_groups)).shuffle
        self._prepare_caches = before_step(found.caches)
        self._used = found.caches == "used"
        self._plan = plan
        self._share = share
        self._found = found
        self._rounds = plan.count(1.0, share)  # an estimate for the progress bar, until `warm_up` knows better
        self._progress = progress
        self._done = 0

    def _round(self) -> dict[str, float]:
        """One step of every candidate, in a new order."""
        seconds = {}
        self._shuffle(self._order)
        for name in self._order:
            runner = self._runners[name]
            step = runner.step
            self._prepare_caches(step)
            begin = time.perf_counter_ns()
            step()
            end = time.perf_counter_ns()
            seconds[name] = (end - begin) * 1e-9
            runner.steps += 1 + USED if self._used else 1
            self._done += 1
            self._progress(self._done, (WARMUP + self._rounds) * len(self._order))
        return seconds

    def warm_up(self) -> None:
        """Takes the untimed rounds, and plans the number of timed ones from their length."""
        lasted = []
        for _ in range(WARMUP):
            began = time.monotonic()
            self._round()
            lasted.append(time.monotonic() - began)
        self._rounds = self._plan.count(max(min(lasted), 1e-6), self._share)

    def measure(self) -> None:
        """Takes the timed rounds."""
        plan, found = self._plan, self._found
        seconds: dict[str, list[float]] = {name: [] for name in self._order}
        with no_collection():
            deadline = time.monotonic() + 1.25 * self._share * plan.budget
            for taken in range(1, self._rounds + 1):
                slept = wait_for_quiet(plan.quiet_timeout - found.waited)
                found.waited += slept
                deadline += slept
                load = Load()
                for name, value in self._round().items():
                    seconds[name].append(value)
                others = load.others()
                if others is not None:
                    found.others.append(others)
                if plan.samples is None and taken >= plan.least and time.monotonic() > deadline:
                    break  # other processes slowed the rounds down, and the planned number no longer fits the budget
        found.memory_groups.append(seconds)
        self._progress(self._done, self._done)
