"""What all measurements share: statistics, garbage collection, and the reason why a candidate was skipped."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from bench.optimizers.baselines import Skipped, reason
from bench.optimizers.time_limit import TimeUp

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps of it are done, and how many there will be."""


def no_progress(doing: str, done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


def rounded(value: float, digits: int = 4) -> float:
    """To so many significant digits."""
    return float(f"{value:.{digits}g}")


def quartiles(samples: Sequence[float], unit: float = 1.0, digits: int = 4) -> dict[str, float]:
    """Minimum, quartiles and maximum, times `unit`, to so many significant digits.

    The quartiles follow pytest-benchmark's definition, so that a run's files and its ``--benchmark-json`` agree.
    """
    ordered = sorted(samples)
    count, (n, rest) = len(ordered), divmod(len(ordered), 4)
    if count == 1:
        q1 = q3 = ordered[0]
    elif rest == 1:
        q1 = 0.25 * ordered[n - 1] + 0.75 * ordered[n]
        q3 = 0.75 * ordered[3 * n] + 0.25 * ordered[3 * n + 1]
    elif rest == 3:
        q1 = 0.75 * ordered[n] + 0.25 * ordered[n + 1]
        q3 = 0.25 * ordered[3 * n + 1] + 0.75 * ordered[3 * n + 2]
    else:
        q1, q3 = statistics.median(ordered[: count // 2]), statistics.median(ordered[count // 2 :])
    values = {"min": ordered[0], "q1": q1, "median": statistics.median(ordered), "q3": q3, "max": ordered[-1]}
    return {name: rounded(unit * value, digits) for name, value in values.items()}


@contextmanager
def no_collection() -> Iterator[None]:
    """Collects garbage before the block and turns the collector off during it."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def why_skipped(error: Exception) -> str:
    """The report's line for a candidate whose set-up or measurement raised this."""
    if isinstance(error, (Skipped, TimeUp)):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "out of GPU memory"
    return f"failed: {reason(error)}"
