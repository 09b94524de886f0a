"""The method: contestants take turns, one step each a round, and ratios are taken within a round.

A benchmark that runs one contestant after another compares, on a shared machine, what the neighbours did in the
meantime. Here a round times one step of every contestant, in an order drawn anew, and a ratio is that of two times of
the same round; what is quoted is the median over the rounds, with quartiles. Where not everybody fits in memory at
once, the peers come in heats (`bench.harness.memory_groups`), with FusedRAdam and the ceiling in each of them.

Before the first round everybody takes its first steps, so that RAdam is rectified (from step 6 on, with β2 = 0.999) and
everything lazy has been built. Parameters and states are each contestant's own; the gradients, which no step writes,
are shared and stay the same from step to step. Garbage is collected before the rounds and not during them.

Before each round it waits for a moment in which other processes leave the CPUs alone, for at most `Plan.patience`
seconds a case. The choice knows nothing of the times to come, so it favours nobody; it only makes fewer rounds noisy.

Before each step the caches are emptied, or rather filled with what a training loop would leave there
(`bench.harness.cache_state`).

Correctness: after the rounds the parameters that the timed steps made are compared with what torch.optim.RAdam and the
``reference`` backend make of the same start in as many steps (`bench.harness.correctness`).

Times are in seconds. Nothing but the call of ``step()`` lies between the two readings of the clock.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.harness.cache_state import USED, before_step
from bench.harness.correctness import Agreement, compare
from bench.harness.machine import Load, free_garbage, wait_for_quiet
from bench.harness.memory_groups import divide
from bench.optimizers.baselines import Absent
from bench.optimizers.candidates import Contestant, Runner
from bench.workloads.cases import Case

WARMUP = 3
"""Untimed rounds, from whose length the number of timed ones is planned."""

Progress = Callable[[str, int, int], None]
"""Told what is going on, how many steps of it are done, and how many there will be."""


@dataclass(frozen=True)
class Plan:
    """How to measure.

    Attributes:
        rounds: of a heat; None for as many as `budget` allows, within `least` and `most`.
        budget: seconds for the rounds of one case, divided among its heats.
        patience: seconds a case, in all, to wait for other processes to come to rest.
        caches: None for each case's own, or one of `bench.harness.cache_state.STATES` for all.
        seed: of parameters, gradients and the order of turns.
    """

    rounds: int | None = None
    budget: float = 60.0
    patience: float = 20.0
    least: int = 7
    most: int = 60
    caches: str | None = None
    seed: int = 0

    def rounds_for(self, seconds_a_round: float, share: float = 1.0) -> int:
        """How many rounds a heat takes that is given this share of the budget."""
        if self.rounds is not None:
            return self.rounds
        return max(self.least, min(self.most, int(share * self.budget / seconds_a_round)))


@dataclass
class Measurement:
    """The rounds of one case.

    Attributes:
        caches: what lay in them when a step began, one of `bench.harness.cache_state.STATES`.
        heats: for each, the time of a contestant's step in each round.
        absent: by contestant, why it did not run.
        agreement: whether what was timed was right.
        others: the part of the machine's CPU time that other processes took during each round, where that is known.
        waited: seconds spent waiting for them.
    """

    case: Case
    caches: str
    heats: list[dict[str, list[float]]] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    agreement: Agreement = field(default_factory=lambda: Agreement({}))
    others: list[float] = field(default_factory=list)
    waited: float = 0.0

    @property
    def contestants(self) -> list[str]:
        """Who ran, in the order in which they came."""
        return list(dict.fromkeys(name for heat in self.heats for name in heat))

    def seconds(self, name: str) -> list[float]:
        """A contestant's times, of all heats."""
        return [value for heat in self.heats for value in heat.get(name, [])]

    def ratios(self, over: str, under: str) -> list[float]:
        """Round by round, the time of one contestant over that of another; empty if they never met."""
        met = (heat for heat in self.heats if over in heat and under in heat)
        return [a / b for heat in met for a, b in zip(heat[over], heat[under], strict=True)]


def measure(
    case: Case,
    contestants: Sequence[Contestant],
    plan: Plan,
    progress: Progress = lambda doing, done, total: None,
) -> Measurement:
    """Runs one case.

    Args:
        case: the shapes.
        contestants: who takes part; who cannot is noted in the result.
        plan: how.
        progress: called after each step.

    Raises:
        NotEnoughMemory: before anything is allocated.
    """
    heats, absent = divide(case, contestants)
    found = Measurement(case, plan.caches or case.caches, absent=absent)
    start = case.values(scale=0.02, seed=plan.seed)
    grads = case.values(scale=0.01, seed=plan.seed + 1)
    for number, members in enumerate(heats, 1):
        which = f" {number}/{len(heats)}" if len(heats) > 1 else ""
        runners: dict[str, Runner] = {}
        for place, contestant in enumerate(members):
            progress(f"first steps{which}", place, len(members))
            try:
                runners[contestant.name] = contestant.build(case, start, grads)
            except Absent as reason:
                found.absent[contestant.name] = str(reason)
        turns = _Turns(runners, plan, case.share / len(heats), found, lambda *at, w=which: progress(f"rounds{w}", *at))
        turns.warm_up()
        turns.measure()
        progress(f"checking{which}", 0, 1)
        found.agreement.merge(compare(members, runners, start, grads))
        # A step may hold its own optimizer in a cycle; the next heat needs the memory.
        del turns, runners
        free_garbage()
    return found


class _Turns:
    """The rounds of one heat; what they find goes to `found`."""

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
        self._shuffle = random.Random(plan.seed + len(found.heats)).shuffle
        self._prepare_caches = before_step(found.caches)
        self._used = found.caches == "used"
        self._plan = plan
        self._share = share
        self._found = found
        self._rounds = plan.rounds_for(1.0, share)  # a guess, for the progress bar
        self._progress = progress
        self._done = 0

    def _round(self) -> dict[str, float]:
        """One step of everybody, in a new order."""
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
        """Takes the first rounds, and from how long they last plans the number of the others."""
        lasted = []
        for _ in range(WARMUP):
            began = time.monotonic()
            self._round()
            lasted.append(time.monotonic() - began)
        self._rounds = self._plan.rounds_for(max(min(lasted), 1e-6), self._share)

    def measure(self) -> None:
        plan, found = self._plan, self._found
        seconds: dict[str, list[float]] = {name: [] for name in self._order}
        gc.collect()
        gc.disable()
        deadline = time.monotonic() + 1.25 * self._share * plan.budget
        try:
            for taken in range(1, self._rounds + 1):
                slept = wait_for_quiet(plan.patience - found.waited)
                found.waited += slept
                deadline += slept
                load = Load()
                for name, value in self._round().items():
                    seconds[name].append(value)
                others = load.others()
                if others is not None:
                    found.others.append(others)
                if plan.rounds is None and taken >= plan.least and time.monotonic() > deadline:
                    break  # others have come in between, and rounds take longer than planned
        finally:
            gc.enable()
        found.heats.append(seconds)
        self._progress(self._done, self._done)
