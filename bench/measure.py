"""The method: contestants take turns, one step each a round, and ratios are taken within a round.

A benchmark that runs one contestant after another compares, on a shared machine, what the neighbours did in the
meantime. Here a round times one step of every contestant, in an order drawn anew, and a ratio is that of two times of
the same round; what is quoted is the median over the rounds, with quartiles.

Before the first round, everybody takes `WARMUP` steps, so that RAdam is rectified (from step 6 on, with β2 = 0.999) and
everything lazy has been built. Parameters and states are each contestant's own; the gradients, which no step writes,
are shared and stay the same from step to step. Garbage is collected before the rounds and not during them.

Before each round it waits for a moment in which other processes leave the CPUs alone, for at most `Plan.patience`
seconds a case. The choice knows nothing of the times to come, so it favours nobody; it only makes fewer rounds noisy.

Before each step the caches are emptied, or rather filled with what a training loop would leave there (`bench.caches`).

Correctness: after the rounds all RAdam contestants have taken the same number of steps from the same parameters with
the same gradients, so what was timed is checked by comparing the parameters themselves with those of torch.optim.RAdam.

Times are in seconds. Nothing but the call of ``step()`` lies between the two readings of the clock.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.caches import FLUSH_BYTES, before_step
from bench.cases import Case
from bench.machine import Load, available_gib, wait_for_quiet
from bench.peers import REFERENCES, Absent, Contestant, Runner

WARMUP = 7
TOLERANCE = 1e-6
"""Largest difference of parameters from torch.optim.RAdam's, relative to the largest parameter."""


@dataclass(frozen=True)
class Plan:
    """How to measure.

    Attributes:
        rounds: how many; None for as many as `budget` allows, within `least` and `most`.
        budget: seconds for the rounds of one case.
        patience: seconds a case, in all, to wait for other processes to come to rest.
        caches: None for each case's own, or one of `bench.caches.STATES` for all.
        seed: of parameters, gradients and the order of turns.
    """

    rounds: int | None = None
    budget: float = 30.0
    patience: float = 20.0
    least: int = 5
    most: int = 60
    caches: str | None = None
    seed: int = 0

    def rounds_for(self, seconds_a_round: float) -> int:
        if self.rounds is not None:
            return self.rounds
        return max(self.least, min(self.most, int(self.budget / seconds_a_round)))


@dataclass
class Agreement:
    """Whether the parameters that the timed steps made are torch.optim.RAdam's.

    Attributes:
        reference: the contestant that the others are held against, or None if none ran.
        steps: how many steps everybody had taken.
        moved: how far the reference had gone, as `differences`: a tolerance means something only well below it.
        differences: by contestant, the largest difference relative to the largest parameter.
    """

    reference: str | None
    steps: int
    moved: float = 0.0
    differences: dict[str, float] = field(default_factory=dict)

    @property
    def agrees(self) -> bool | None:
        if self.reference is None:
            return None
        return self.moved > 10 * TOLERANCE and all(value <= TOLERANCE for value in self.differences.values())


@dataclass
class Measurement:
    """The rounds of one case.

    Attributes:
        caches: what lay in them when a step began, one of `bench.caches.STATES`.
        seconds: by contestant, the time of its step in each round.
        absent: by contestant, why it did not run.
        others: the part of the machine's CPU time that other processes took during the rounds; None if unknown.
        waited: seconds spent waiting for them.
    """

    case: Case
    caches: str
    seconds: dict[str, list[float]]
    absent: dict[str, str]
    agreement: Agreement
    others: float | None
    waited: float = 0.0

    def ratios(self, over: str, under: str) -> list[float]:
        """Round by round, the time of one contestant over that of another."""
        return [a / b for a, b in zip(self.seconds[over], self.seconds[under], strict=True)]


class NotEnoughMemory(Exception):
    """A case that would drive the machine into swapping."""


def check_memory(case: Case, contestants: list[Contestant]) -> None:
    """Raises `NotEnoughMemory` where the operating system says that a case does not fit."""
    needed, available = bytes_needed(case, contestants) / 2**30, available_gib()
    if available is not None and needed > available:
        raise NotEnoughMemory(f"needs about {needed:.1f} GiB of memory, {available:.1f} are free")


def bytes_needed(case: Case, contestants: list[Contestant]) -> int:
    """Memory for a case, about: starting values, gradients, the flush, and what the contestants hold."""
    return (2 + sum(c.arrays for c in contestants)) * case.array_bytes + FLUSH_BYTES


def measure(
    case: Case,
    contestants: list[Contestant],
    plan: Plan,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Measurement:
    """Runs one case.

    Args:
        case: the shapes.
        contestants: who takes part; who cannot is noted in the result.
        plan: how.
        progress: told how many steps are done and how many there will be, after each.

    Raises:
        NotEnoughMemory: before anything is allocated.
    """
    check_memory(case, contestants)
    start = case.values(scale=0.02, seed=plan.seed)
    grads = case.values(scale=0.01, seed=plan.seed + 1)
    runners: dict[str, Runner] = {}
    absent: dict[str, str] = {}
    for contestant in contestants:
        try:
            runners[contestant.name] = contestant.build(case, start, grads)
        except Absent as reason:
            absent[contestant.name] = str(reason)

    caches = plan.caches or case.caches
    turns = _Turns(runners, plan, caches, progress)
    turns.warm_up()
    turns.measure()
    agreement = _agreement(contestants, runners, start, turns.steps)
    others = sum(turns.others) / len(turns.others) if turns.others else None
    return Measurement(case, caches, turns.seconds, absent, agreement, others, turns.waited)


class _Turns:
    """The rounds of one case."""

    def __init__(
        self, runners: dict[str, Runner], plan: Plan, caches: str, progress: Callable[[int, int], None]
    ) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in runners}
        self.taken = 0
        self.steps = 0  # of everybody, timed or not
        self.waited = 0.0
        self.others: list[float] = []
        self._steps = {name: runner.step for name, runner in runners.items()}
        self._order = list(runners)
        self._shuffle = random.Random(plan.seed).shuffle
        self._caches = caches
        self._prepare_caches = before_step(caches)
        self._plan = plan
        self._rounds = plan.rounds_for(1.0)  # a guess, for the progress bar
        self._progress = progress
        self._done = 0

    def _round(self) -> dict[str, float]:
        """One step of everybody, in a new order."""
        seconds = {}
        self._shuffle(self._order)
        for name in self._order:
            step = self._steps[name]
            self._prepare_caches(step)
            begin = time.perf_counter_ns()
            step()
            end = time.perf_counter_ns()
            seconds[name] = (end - begin) * 1e-9
            self._done += 1
            self._progress(self._done, (WARMUP + self._rounds) * len(self._order))
        self.steps += 2 if self._caches == "used" else 1
        return seconds

    def warm_up(self) -> None:
        """Takes the first steps, and from how long they last plans the number of rounds."""
        lasted = []
        for _ in range(WARMUP):
            began = time.monotonic()
            self._round()
            lasted.append(time.monotonic() - began)
            # The last two are rectified, and one of them was perhaps not interrupted.
            self._rounds = self._plan.rounds_for(min(lasted[-2:]))

    def measure(self) -> None:
        plan = self._plan
        gc.collect()
        gc.disable()
        deadline = time.monotonic() + 1.25 * plan.budget
        try:
            while self.taken < self._rounds:
                slept = wait_for_quiet(plan.patience - self.waited)
                self.waited += slept
                deadline += slept
                load = Load()
                for name, seconds in self._round().items():
                    self.seconds[name].append(seconds)
                self.taken += 1
                others = load.others()
                if others is not None:
                    self.others.append(others)
                if plan.rounds is None and self.taken >= plan.least and time.monotonic() > deadline:
                    break  # others have come in between, and rounds take longer than planned
        finally:
            gc.enable()
        self._progress(self._done, self._done)


def _agreement(contestants: list[Contestant], runners: dict[str, Runner], start: list[Tensor], steps: int) -> Agreement:
    reference = next((name for name in REFERENCES if name in runners), None)
    if reference is None:
        return Agreement(None, steps)
    with torch.no_grad():
        expected = runners[reference].params
        largest = max(float(p.abs().max()) for p in expected)

        def difference(params: list[Tensor]) -> float:
            return max(float((p - q).abs().max()) for p, q in zip(params, expected, strict=True)) / largest

        names = [c.name for c in contestants if c.radam and c.name in runners and c.name != reference]
        differences = {name: difference(runners[name].params) for name in names}
        return Agreement(reference, steps, difference(start), differences)
