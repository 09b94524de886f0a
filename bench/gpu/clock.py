"""Clocks: how long a step keeps the GPU busy, how long the host, and how long it takes in a loop.

GPU time lies between two CUDA events. The host may need longer to start a step than the GPU to do it, and the events
would then measure the host; so the GPU is first sent to sleep, for longer than the host needs, and finds everything in
its queue when it wakes. A sample counts only if the GPU still sleeps when all is queued. A queue holds about a thousand
launches: a step of more cannot be timed this way, and is reported.

Before each timed step several times the L2 cache is read and written, so that nothing of the step's arrays is in it,
and what is there is dirty, as after a backward pass.

`HostClock` stands in where there is no GPU, for the tests. Times are in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

Step = Callable[[], object]

LONGEST_SLEEP = 0.25
"""Seconds of sleep after which a step counts as one that cannot be queued ahead."""


class Clock(Protocol):
    """What the measurements ask of a device."""

    device: str

    def synchronize(self) -> None:
        """Waits for everything that was started."""

    def busy(self, step: Step, count: int, host_takes: float) -> list[float]:
        """GPU seconds of `count` single steps, each of so many seconds on the host; empty where they don't show."""


def host(clock: Clock, step: Step, count: int) -> list[float]:
    """Seconds that ``step()`` keeps the host, over `count` steps, each with nothing queued before it."""
    taken = []
    for _ in range(count):
        clock.synchronize()
        begin = time.perf_counter()
        step()
        taken.append(time.perf_counter() - begin)
    clock.synchronize()
    return taken


def looped(clock: Clock, step: Step, count: int, repeats: int) -> list[float]:
    """Seconds a step in loops of `count` steps, host and GPU at work side by side; one value a loop."""
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
        for _ in range(1000):  # so that the clocks are up; a fifth of a second
            self._other.add_(1.0)
        self._start.record()
        torch.cuda._sleep(20_000_000)
        self._end.record()
        self._end.synchronize()
        self._cycles = 20_000_000 / (1e-3 * self._start.elapsed_time(self._end))
        """A second's, about: how many depends on the clocks of the moment."""

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
    """The CPU in place of a GPU: a step is over when it returns."""

    device = "cpu"

    def synchronize(self) -> None:
        pass

    def busy(self, step: Step, count: int, host_takes: float) -> list[float]:
        return host(self, step, count)


def current() -> Clock:
    """The clock of this machine's GPU.

    Raises:
        RuntimeError: there is none.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("torch sees no CUDA GPU")
    return CudaClock()
