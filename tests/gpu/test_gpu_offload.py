"""``offload=True`` for parameters on a GPU: pinned moments, the same bits, copies beside the host's work, and order."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from radam_fused import FusedRAdam
from radam_fused.backends import offload
from radam_fused.backends.ops import Operators
from tests.gpu import on_gpu
from tests.kernels import test_bits

SHAPES = [(100_003,), (64,), (33, 17), ()]
SLEEP = 400_000_000
"""Cycles: 0.2 s at 2 GHz."""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks a step."""
    monkeypatch.setattr(offload, "SLOT_BYTES", 1 << 16)


def offloaded(shapes: list[tuple[int, ...]] = SHAPES, **options: Any) -> tuple[list[Tensor], FusedRAdam]:
    return on_gpu.model(shapes, "auto", offload=True, **options)


# Where things are.


def test_moments_are_pinned(small: None) -> None:
    params, opt = offloaded()
    opt.step()
    for p in params:
        for name in ("exp_avg", "exp_avg_sq"):
            moment = opt.state[p][name]
            assert moment.device.type == "cpu"
            assert moment.is_pinned()
    (offloader,) = opt._bucket_manager._builder.backend.offloaders.values()
    assert len(offloader._ring) == offload.SLOTS
    assert all(slot.memory.is_pinned() for slot in offloader._ring)
    assert offloader.staging_bytes == offload.SLOTS * offload.SLOT_BYTES


def test_no_memory_on_the_gpu() -> None:
    """Neither for the state nor for the step."""
    _, opt = offloaded([(4096, 4096), (1000,)])
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["allocated_bytes.all.current"]
    for _ in range(3):
        opt.step()
    torch.cuda.synchronize()
    assert torch.cuda.memory_stats()["allocated_bytes.all.peak"] - before < 1 << 20


def test_moments_on_the_gpu_show(backend: str) -> None:
    """The negative control."""
    _, opt = on_gpu.model([(4096, 4096)], backend)
    before = torch.cuda.memory_stats()["allocated_bytes.all.current"]
    opt.step()
    assert torch.cuda.memory_stats()["allocated_bytes.all.current"] - before >= 8 * 4096 * 4096


# The same bits.


@pytest.mark.parametrize(
    ("dtype", "grad_dtype"),
    [(torch.float32, torch.float32), (torch.float64, torch.float64), (torch.bfloat16, torch.float32)],
    ids=["fp32", "fp64", "bf16-grad_fp32"],
)
def test_bits_equal_the_gpus(dtype: torch.dtype, grad_dtype: torch.dtype, backend: str, small: None) -> None:
    """Every layout, several groups, missing and expanded gradients."""
    expected = on_gpu.train(backend, dtype, grad_dtype, steps=20)
    with patch.object(test_bits, "filled", on_gpu.filled), patch.object(test_bits, "gradients", on_gpu.gradients):
        params, moments = test_bits.train("auto", dtype, grad_dtype, steps=20, offload=True)
    assert all(p.is_cuda for p in params)
    assert not any(m.is_cuda for m in moments)
    test_bits.assert_same(([p.cpu() for p in params], moments), expected)


@pytest.mark.parametrize("zero_grads", [False, True])
def test_bits_of_scaled_and_clipped_steps(zero_grads: bool, backend: str, small: None) -> None:
    trained, norms = [], []
    for options in ({"backend": backend}, {"backend": "auto", "offload": True}):
        params, opt = on_gpu.model(SHAPES, max_grad_norm=1.0, zero_grads=zero_grads, **options)
        grads = [p.grad.clone() for p in params]
        scaler = torch.amp.GradScaler("cuda", init_scale=8.0)
        scaler.scale(torch.ones((), device="cuda"))
        for t in range(8):
            for p, grad in zip(params, grads, strict=True):
                p.grad.copy_(grad * (8.0 if t != 4 else float("inf")))
            scaler.step(opt)
            scaler.update(8.0)
            assert (params[0].grad == 0).all() == zero_grads
        assert int(opt.state[params[0]]["step"]) == 7
        trained.append(params)
        norms.append(opt.last_grad_norm.cpu())
    assert on_gpu.same(*trained)
    assert torch.equal(*norms)


def test_parameters_here_and_there(small: None) -> None:
    """Those on the CPU and those on the GPU, in one optimizer."""
    here, there = (on_gpu.model(SHAPES, "auto", device=device)[0] for device in ("cpu", "cuda"))
    expected, reference = on_gpu.model(SHAPES, "reference", device="cpu")
    opt = FusedRAdam([*here, *there], 0.01, offload=True)
    for _ in range(8):
        opt.step()
        reference.step()
    assert on_gpu.same(here, expected)
    assert on_gpu.same(there, expected)


@pytest.mark.parametrize("first", [False, True], ids=["to offload", "from offload"])
def test_checkpoints_both_ways(first: bool, backend: str, small: None) -> None:
    params, opt = offloaded() if first else on_gpu.model(SHAPES, backend)
    others, resumed = on_gpu.model(SHAPES, backend) if first else offloaded()
    for _ in range(6):
        opt.step()
    with torch.no_grad():
        for p, q in zip(others, params, strict=True):
            p.copy_(q)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    for _ in range(6):
        opt.step()
        resumed.step()
    assert on_gpu.same(params, others)
    assert all(resumed.state[p]["exp_avg"].is_cuda == first for p in others)


# Order.


def after_a_late_gradient(*, step_elsewhere: bool) -> list[Tensor]:
    """Parameters, read right after a step, whose gradients were written on a side stream, late."""
    params, opt = offloaded()
    opt.step()
    torch.cuda.synchronize()
    side, other = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(SLEEP)
        for p in params:
            p.grad.mul_(-3.0)
        if not step_elsewhere:
            opt.step()
            seen = [p.detach().clone() for p in params]
    if step_elsewhere:
        with torch.cuda.stream(other):
            opt.step()
            seen = [p.detach().clone() for p in params]
    torch.cuda.synchronize()
    return seen


def in_order() -> list[Tensor]:
    params, opt = on_gpu.model(SHAPES, "reference", device="cpu")
    opt.step()
    for p in params:
        p.grad.mul_(-3.0)
    opt.step()
    return params


def test_a_step_on_a_side_stream(small: None) -> None:
    assert on_gpu.same(after_a_late_gradient(step_elsewhere=False), in_order())


def test_a_step_on_another_stream_shows(small: None) -> None:
    """The negative control: unordered, it reads the gradients too early."""
    assert not on_gpu.same(after_a_late_gradient(step_elsewhere=True), in_order())


def test_what_follows_sees_the_new_parameters() -> None:
    """Of large tensors, whose last copies up are still under way when step() returns; the last one is read first."""
    params, opt = offloaded([(16_000_000,)] * 3)
    expected, reference = on_gpu.model([(16_000_000,)] * 3, "cpu", device="cpu")
    for _ in range(2):
        opt.step()
        seen = [p.detach().clone() for p in reversed(params)]
        reference.step()
        assert on_gpu.same(seen, expected[::-1])


def test_capture_is_refused() -> None:
    params, opt = offloaded()
    opt.step()
    before = [p.detach().clone() for p in params]
    torch.cuda.synchronize()
    with pytest.raises(RuntimeError, match="offload = True: a CUDA graph cannot capture"):  # noqa: SIM117
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            opt.step()
    assert on_gpu.same(params, before)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU here: another current device cannot be tried")
def test_on_a_device_that_is_not_current(small: None) -> None:
    params, opt = offloaded(device="cuda:1")
    with torch.cuda.device(0):
        opt.step()
        for p in params:
            p.grad.mul_(-3.0)
        opt.step()
        assert torch.cuda.current_device() == 0
    assert on_gpu.same(params, in_order())


# Overlap.


def milliseconds(step: Callable[[], object]) -> float:
    """From what was before a step on the current stream to what comes after."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def test_copies_overlap_with_the_computation(monkeypatch: pytest.MonkeyPatch, record_property: Any) -> None:
    """A step takes less than its copies and its computation one after the other, as they are with a single slot.

    The shortest of several of each, in turns: other tests may be at work on the same cores.
    """
    shapes = [(64_000_000,)] * 2
    (_, opt), (_, alone), (_, idle) = (offloaded(shapes) for _ in range(3))
    opt.step()
    monkeypatch.setattr(offload, "SLOTS", 1)  # a ring that has more keeps them
    alone.step()
    idle.step()
    (offloader,) = idle._bucket_manager._builder.backend.offloaders.values()
    nothing = Operators(step=lambda *args: None, grad_norm=offloader._host.grad_norm, scalars=offloader._host.scalars)
    monkeypatch.setattr(offloader, "_host", nothing)
    rings = [
        len(ring._ring) for o in (opt, alone, idle) for ring in o._bucket_manager._builder.backend.offloaders.values()
    ]
    assert rings == [3, 1, 1]
    turns = [[milliseconds(each.step) for each in (opt, alone, idle)] for _ in range(8)]
    overlapped, one_by_one, copies = map(min, zip(*turns, strict=True))

    computation = one_by_one - copies
    figures = {"overlapped": overlapped, "one by one": one_by_one, "copies": copies, "computation": computation}
    print(", ".join(f"{name} {value:.1f} ms" for name, value in figures.items()))
    for name, value in figures.items():
        record_property(name, value)
    assert overlapped < one_by_one - 0.5 * min(copies, computation)
