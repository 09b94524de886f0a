"""The clocks: the CPU's, and the GPU's logic on a GPU that is made up, where time is counted by hand."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from bench.gpu import clock
from bench.gpu.clock import CudaClock, HostClock

CYCLES = 2e9


class FakeGpu:
    """A queue that is worked off in order; `now` is the host's time, `free` when the queue is empty."""

    def __init__(self) -> None:
        self.now = self.free = 0.0

    def queue(self, seconds: float) -> float:
        self.free = max(self.free, self.now) + seconds
        return self.free

    def wait(self, until: float | None = None) -> None:
        self.now = max(self.now, self.free if until is None else until)

    def event(self, enable_timing: bool) -> FakeEvent:
        return FakeEvent(self)

    def step(self, host: float, busy: float):
        """A step that keeps the host and then the GPU for so long."""

        def start() -> None:
            self.now += host
            self.queue(busy)

        return start


class FakeEvent:
    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu

    def record(self) -> None:
        self.at = self.gpu.queue(0.0)

    def query(self) -> bool:
        return self.at <= self.gpu.now

    def synchronize(self) -> None:
        self.gpu.wait(self.at)

    def elapsed_time(self, other: FakeEvent) -> float:
        return 1e3 * (other.at - self.at)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    gpu = FakeGpu()
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: gpu.queue(cycles / CYCLES), raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", gpu.wait)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=60 << 20))
    monkeypatch.setattr(torch, "zeros", lambda *size, **_: SimpleNamespace(add_=lambda value: gpu.queue(1e-4)))
    return gpu


@pytest.mark.parametrize("host", [1e-5, 5e-3], ids=["quick_host", "slow_host"])
@pytest.mark.parametrize("estimate", [1.0, 0.01], ids=["right_estimate", "estimate_too_low"])
def test_gpu_time_is_the_gpus_whatever_the_host_takes(host, estimate, gpu):
    taken = CudaClock().busy(gpu.step(host, 5e-5), 5, host * estimate)
    assert taken == pytest.approx([5e-5] * 5)


def test_clocks_that_have_sped_up_since_do_no_harm(gpu):
    """The sleep is then shorter than it was meant to be; samples that it does not cover are taken again."""
    on = CudaClock()
    on._cycles /= 6
    assert on.busy(gpu.step(5e-3, 5e-5), 5, 5e-3) == pytest.approx([5e-5] * 5)


def test_a_step_that_cannot_be_queued_ahead_has_no_gpu_time(gpu):
    assert CudaClock().busy(gpu.step(0.3, 5e-5), 5, 0.3) == []


def test_loops_take_the_longer_of_host_and_gpu(gpu, monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: gpu.now)
    on = CudaClock()
    assert clock.looped(on, gpu.step(1e-5, 1e-3), 100, 2) == pytest.approx([1e-3] * 2, rel=0.02)
    assert clock.looped(on, gpu.step(1e-3, 1e-5), 100, 2) == pytest.approx([1e-3] * 2, rel=0.02)
    assert clock.host(on, gpu.step(1e-5, 1e-3), 3) == pytest.approx([1e-5] * 3)


def test_host_clock_times_what_it_is_given(gpu, monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: gpu.now)
    on, step = HostClock(), gpu.step(0.01, 0.0)
    for taken in (clock.host(on, step, 3), clock.looped(on, step, 2, 3), on.busy(step, 3, 0.01)):
        assert taken == pytest.approx([0.01] * 3)
