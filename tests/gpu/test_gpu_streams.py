"""When and where a step runs: on the current stream, on the parameters' device, without waiting for either."""

from __future__ import annotations

import pytest
import torch

from tests.gpu import on_gpu

SHAPES = [(100_003,), (64,), (33, 17)]
SLEEP = 400_000_000
"""Cycles: 0.2 s at 2 GHz."""


def after_a_late_gradient(backend: str, *, step_elsewhere: bool, flatten: bool = False) -> list[torch.Tensor]:
    """Parameters after steps whose gradients are written on a side stream, late."""
    params, opt = on_gpu.model(SHAPES, backend, flatten=flatten)
    opt.step()
    torch.cuda.synchronize()
    side, other = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(SLEEP)
        for p in params:
            p.grad.mul_(-3.0)
        if not step_elsewhere:
            opt.step()
    if step_elsewhere:
        with torch.cuda.stream(other):
            opt.step()
    torch.cuda.synchronize()
    return params


@pytest.fixture
def in_order() -> list[torch.Tensor]:
    params, opt = on_gpu.model(SHAPES, "reference", device="cpu")
    opt.step()
    for p in params:
        p.grad.mul_(-3.0)
    opt.step()
    return params


@pytest.mark.parametrize("flatten", [False, True], ids=["tensors", "flatten"])
def test_step_waits_for_gradients_on_its_stream(backend: str, flatten: bool, in_order: list) -> None:
    """Were it on another stream, it would read the gradients before they are there."""
    assert on_gpu.same(after_a_late_gradient(backend, step_elsewhere=False, flatten=flatten), in_order)


def test_a_step_on_another_stream_shows(backend: str, in_order: list) -> None:
    """The negative control: unordered, it does read them too early."""
    assert not on_gpu.same(after_a_late_gradient(backend, step_elsewhere=True), in_order)


@pytest.mark.parametrize("flatten", [False, True], ids=["tensors", "flatten"])
def test_nothing_synchronises(backend: str, flatten: bool) -> None:
    """Neither by a call that torch knows of, nor otherwise: it returns while the GPU is still asleep."""
    _, opt = on_gpu.model(SHAPES * 300, backend, flatten=flatten, groups=3)
    for _ in range(7):
        opt.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        done = torch.cuda.Event()
        torch.cuda._sleep(4 * SLEEP)
        for _ in range(3):
            opt.step()
        done.record()
        assert not done.query(), "the steps had waited for the GPU"
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_synchronising_is_noticed() -> None:
    """The negative control."""
    value = torch.ones(1, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            value.item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_host_returns_at_once(backend: str) -> None:
    """While the GPU sleeps, as a step that waits for it never does; a busy machine has ten attempts."""
    _, opt = on_gpu.model([(1000,)], backend)
    for _ in range(7):
        opt.step()
    asleep = []
    for _ in range(10):
        torch.cuda.synchronize()
        torch.cuda._sleep(SLEEP)
        slept = torch.cuda.Event()
        slept.record()
        opt.step()
        asleep.append(not slept.query())
        torch.cuda.synchronize()
        if asleep[-1]:
            break
    assert any(asleep)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU here: another current device cannot be tried")
@pytest.mark.parametrize("flatten", [False, True], ids=["tensors", "flatten"])
def test_step_runs_on_the_parameters_device(backend: str, flatten: bool, in_order: list) -> None:
    """Whatever device is current, and leaves that as it was."""
    params, opt = on_gpu.model(SHAPES, backend, device="cuda:1", flatten=flatten)
    with torch.cuda.device(0):
        opt.step()
        for p in params:
            p.grad.mul_(-3.0)
        opt.step()
        assert torch.cuda.current_device() == 0
    assert on_gpu.same(params, in_order)


def test_current_device_stays(backend: str, in_order: list) -> None:
    params, opt = on_gpu.model(SHAPES, backend, device="cuda:0")
    opt.step()
    for p in params:
        p.grad.mul_(-3.0)
    with torch.cuda.device(torch.cuda.device_count() - 1):
        opt.step()
        assert torch.cuda.current_device() == torch.cuda.device_count() - 1
    assert on_gpu.same(params, in_order)
