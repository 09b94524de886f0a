"""Lets pytest-benchmark compute statistics and write files from times that were measured before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any


class ReplayTimer:
    """A timer that replays durations: pytest-benchmark reads it before and after a round, and it advances by one."""

    __name__ = "interleaved_rounds"

    def __init__(self) -> None:
        self._readings: Iterator[float] = iter(())

    def load(self, durations: Sequence[float]) -> None:
        self._readings = (reading for duration in durations for reading in (0.0, duration))

    def __call__(self) -> float:
        return next(self._readings)


REPLAY_TIMER = ReplayTimer()


def replay(benchmark: Any, durations: Sequence[float]) -> None:
    """Gives pytest-benchmark these durations as its rounds; the test is marked with ``timer=REPLAY_TIMER``."""
    REPLAY_TIMER.load(durations)
    benchmark.pedantic(lambda: None, rounds=len(durations))
