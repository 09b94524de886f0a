"""How long to measure: the one plan of the CPU and the GPU suite."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """How many samples to take, and under which conditions.

    Attributes:
        budget: seconds of sampling. On the CPU for the rounds of one case, divided among its memory groups; on a GPU
            for each of the three times of one candidate and case.
        least, most: bounds on the number of samples that the budget allows.
        samples: a fixed number of samples instead; None for as many as the budget allows.
        ends: when the run must be over, by time.monotonic(); candidates that compile something are stopped then.
        quiet_timeout: seconds per case, in all, to wait until other processes leave the CPUs idle.
        caches: None for each case's own, or one of `bench.harness.cache_state.STATES` for all cases.
        seed: of parameters, gradients and the order of turns.
    """

    budget: float = 60.0
    least: int = 7
    most: int = 60
    samples: int | None = None
    ends: float = math.inf
    quiet_timeout: float = 20.0
    caches: str | None = None
    seed: int = 0

    def count(self, seconds: float, share: float = 1.0) -> int:
        """How many samples of so many seconds each fit into this share of the budget, within the bounds."""
        if self.samples is not None:
            return self.samples
        return max(self.least, min(self.most, int(share * self.budget / max(seconds, 1e-9))))
