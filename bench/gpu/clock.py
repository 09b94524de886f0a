"""Clocks: how long a step keeps the GPU busy, how long it keeps the host busy, and how long it takes in a loop.

GPU time is measured between two CUDA events. The host may need longer to launch a step than the GPU to execute it; the
events would then measure the host. So a kernel first makes the GPU sleep for longer than the host needs, and when it
wakes, its queue holds the whole step. A sample counts only if the GPU still sleeps when everything is queued. A queue
holds about a thousand launches: a step with more cannot be timed this way, and the report says so.

Before each timed step, several times the size of the L2 cache is read and written. None of the step's arrays is then
cached, and the cached lines are dirty, as after a backward pass.

`HostClock` replaces the GPU's clock in tests. Times are in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

Step = Callable[[], object]

LONGEST_SLEEP = 0.25
"""Seconds of sleep after which a step counts as too long to be queued ahead."""


class Clock(Protocol):
    """A device's clock."""

    device: str

    def synchronize(self) -> None:
        """Waits until the device has finished all work."""

    def busy(self, step: Step, count: int, host_takes: float) -> list[float]:
        """GPU seconds of `count` single steps, which each keep the host for `host_takes`; empty if it is impossible."""


def host(clock: Clock, step: Step, count: int) -> list[float]:
    """Seconds until ``step()`` returns, for `count` steps, each started with an empty queue."""
    taken = []
    for _ in range(count):
        clock.synchronize()
        begin = time.perf_counter()
        step()
        taken.append(time.perf_counter() - begin)
    clock.synchronize()
    return taken


def looped(clock: Clock, step: Step, count: int, repeats: int) -> list[float]:
    """Seconds per step in loops of `count` steps, where host and GPU overlap; one value per loop."""
    taken = []
    for _ in range(repeats):
        clock.synchronize()
        begin = time.perf_counter()
        for _ in range(count):
            step()
        clock.synchronize()
        taken.append((time.perf_counter() - begin) / count)
    return taken


class CudaClock:
    """The current CUDA device, on its current stream."""

    device = "cuda"

    def __init__(self) -> None:
        cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self._other = torch.zeros(4 * max(cache, 32 * 2**20) // 4, device="cuda")
        self._awake, self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        for _ in range(1000):  # a fifth of a second, which raises the clocks
            self._other.add_(1.0)
        self._start.record()
        torch.cuda._sleep(20_000_000)
        self._end.record()
        self._end.synchronize()
        self._cycles = 20_000_000 / (1e-3 * self._start.elapsed_time(self._end))
        """Per second, approximately: the clock rate varies."""

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def busy(self, step: Step, count: int, host_takes: float) -> list[float]:
        taken: list[float] = []
        sleep = 2 * host_takes + 3e-4
        while len(taken) < count:
            if sleep > LONGEST_SLEEP:
                return []
            torch.cuda.synchronize()
            torch.cuda._sleep(int(sleep * self._cycles))
            self._awake.record()
            self._other.add_(1.0)
            self._start.record()
            step()
            self._end.record()
            ahead = not self._awake.query()
            self._end.synchronize()
            if ahead:
                taken.append(1e-3 * self._start.elapsed_time(self._end))
            else:
                sleep *= 2
        return taken


class HostClock:
    """The CPU's clock: a step has finished when it returns."""

    device = "cpu"

    def synchronize(self) -> None:
        pass

    def busy(self, step: Step, count: int, host_takes: float) -> list[float]:
        return host(self, step, count)


def current() -> Clock:
    """The clock of this machine's GPU.

    Raises:
        RuntimeError: torch sees no GPU.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("torch sees no CUDA GPU")
    return CudaClock()
