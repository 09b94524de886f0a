"""More than 2^31 elements: in one tensor, in one bucket of several, and in the norm. ``make large``; 17 GiB of memory.

Parameters and gradients are bfloat16 with 8-bit moments, and repeat after `PERIOD` elements. ``reference`` steps
windows of them, with the random numbers of their places: the first elements, those around element 2^31 and the last.
"""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor

from radam_fused import FusedRAdam
from radam_fused.numerics.layout import segment_starts
from radam_fused.state import bucket_builder

PERIOD = 1_000_192
"""A multiple of a block of 8-bit moments, but not of a tile of 1024 elements."""
BEYOND = int(os.environ.get("RADAM_FUSED_LARGE", 2**31))
"""The count of elements that the tests exceed. A smaller one tries the tests themselves."""
REPEATS = BEYOND // PERIOD + 3
STEPS = 7
WINDOW = 16 * 256
LIMIT = 20 * 2**30


@pytest.fixture(autouse=True)
def _within_the_limit() -> Iterator[None]:
    """The process never uses more than 20 GiB."""
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < LIMIT


def periodic(repeats: int, seed: int) -> Tensor:
    """bfloat16 values that repeat after `PERIOD`."""
    one = torch.randn(PERIOD, generator=torch.Generator().manual_seed(seed)).bfloat16()
    return one.repeat(repeats)


def window_of(seed: int, begin: int) -> Tensor:
    """The same values, from an element on."""
    return periodic(2, seed)[begin % PERIOD :][:WINDOW].clone()


def optimizer(params: list[Tensor], **options: object) -> FusedRAdam:
    return FusedRAdam(params, lr=0.01, state_dtype=torch.int8, **options)


def expected(seed: int, grad_seed: int, begin: int, ahead: int = 0) -> Tensor:
    """A window of a parameter after `STEPS` steps by ``reference``; ``ahead``: where the bucket has the parameter."""
    p = torch.nn.Parameter(window_of(seed, begin))
    with mock.patch.object(bucket_builder, "rng_offset_of", return_value=ahead + begin):
        opt = optimizer([p], backend="reference")
        for _ in range(STEPS):
            p.grad = window_of(grad_seed, begin)
            opt.step()
    return p.detach()


def differing(p: Tensor, seed: int, grad_seed: int, ahead: int = 0) -> list[int]:
    """The windows of a stepped parameter that ``reference`` makes otherwise, by their first elements."""
    begins = [0, p.numel() - WINDOW]
    if ahead < BEYOND < ahead + p.numel() - WINDOW:
        begins.append((BEYOND - ahead) // 256 * 256 - WINDOW // 2)
    found = []
    for begin in sorted(begins):
        ours, theirs = p.detach()[begin : begin + WINDOW], expected(seed, grad_seed, begin, ahead)
        assert not torch.equal(theirs, window_of(seed, begin))  # it has moved
        if not torch.equal(ours.view(torch.int16), theirs.view(torch.int16)):
            found.append(begin)
    return found


def test_one_tensor() -> None:
    p = torch.nn.Parameter(periodic(REPEATS, 0))
    assert p.numel() > BEYOND + WINDOW
    p.grad = periodic(REPEATS, 1)
    opt = optimizer([p], backend="cpu")
    for _ in range(STEPS):
        opt.step()
    assert differing(p, 0, 1) == []
    p.detach().view(torch.int16)[-1] ^= 1  # the negative control: the very last bit
    assert differing(p, 0, 1) == [p.numel() - WINDOW]


@pytest.mark.parametrize("flatten", [False, True], ids=["apart", "flatten"])
def test_a_bucket_of_three(flatten: bool) -> None:
    repeats = -(-REPEATS // 3) + 1
    params = [torch.nn.Parameter(periodic(repeats, seed)) for seed in range(3)]
    starts, total = segment_starts([p.numel() for p in params])
    assert starts[2] < BEYOND < total - WINDOW
    opt = optimizer(params, backend="cpu", flatten=flatten)
    for seed, p in enumerate(params):
        p.grad = periodic(repeats, seed + 10)
    for _ in range(STEPS):
        opt.step()
    for seed, (p, ahead) in enumerate(zip(params, starts, strict=True)):
        assert differing(p, seed, seed + 10, ahead) == []
    assert len(differing(params[2], 2, 12, ahead=starts[2] + 256)) == 3  # the negative control: others' random numbers


def test_the_norm() -> None:
    grad = periodic(REPEATS, 2)
    one = periodic(1, 2).double().square().sum().item()
    total = torch.ops.radam_fused.grad_norm_native([grad]).sum().item()
    assert math.isclose(total, REPEATS * one, rel_tol=1e-6)
    grad[-1] = value = grad.new_tensor(math.sqrt(REPEATS * one))  # the last element counts as much as all others
    total = torch.ops.radam_fused.grad_norm_native([grad]).sum().item()
    assert math.isclose(total, REPEATS * one + value.double().square().item(), rel_tol=1e-6)
    assert not math.isclose(total, REPEATS * one, rel_tol=0.1)  # the negative control


def test_a_clipped_step() -> None:
    """``last_grad_norm``, and that the far end moves as the beginning does, but for random numbers."""
    p = torch.nn.Parameter(periodic(REPEATS, 3))
    p.grad = periodic(REPEATS, 4)
    opt = optimizer([p], max_grad_norm=1.0, backend="cpu")
    opt.step()
    one = periodic(1, 4).double().square().sum().item()
    assert math.isclose(float(opt.last_grad_norm), math.sqrt(REPEATS * one), rel_tol=1e-6)
    first, last = p.detach()[:PERIOD], p.detach()[-PERIOD:]
    assert not torch.equal(first, periodic(1, 3))
    assert torch.equal(first, last)  # the first step reads no stored moment
