"""The squares of gradients over a pointer table: no list goes through the dispatcher, and the bits are its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from radam_fused import FusedRAdam
from radam_fused.backends.native_norm import NativeNorm
from radam_fused.backends.ops import OPERATORS
from radam_fused.step.pointer_table import PointerTable
from tests.support.helpers import same_bits

SIZES = (0, 1, 70, 1024, 5000, 70_003)
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=["fp32", "fp64", "bf16", "fp16"]
)


def model(dtype: torch.dtype) -> tuple[list[nn.Parameter], FusedRAdam]:
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(n, generator=generator).to(dtype)) for n in SIZES]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(dtype)
    return params, FusedRAdam(params, lr=0.1, backend="cpu", max_grad_norm=1.0)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor | None]:
    """What each call on the pointer path has found."""
    results: list[torch.Tensor | None] = []
    original = PointerTable.grad_norm

    def grad_norm(self: PointerTable, pointer_norm: type) -> torch.Tensor | None:
        assert pointer_norm is NativeNorm
        sums = original(self, pointer_norm)
        results.append(None if sums is None else sums.clone())
        return sums

    monkeypatch.setattr(PointerTable, "grad_norm", grad_norm)
    return results


@DTYPES
def test_equals_the_operator(dtype: torch.dtype, found: list) -> None:
    params, opt = model(dtype)
    for _ in range(5):  # the first has no plan yet, and one more plan is made where a device begins to count
        opt.step()
    grads = [p.grad for p in params]
    expected = OPERATORS["cpu"].grad_norm(grads)
    assert len(found) >= 2
    assert all(same_bits(sums, expected) for sums in found)
    grads[-1][0] += 0.5  # the negative control: one element of one gradient
    assert not same_bits(found[-1], OPERATORS["cpu"].grad_norm(grads))


def test_each_step_reads_its_own_gradients(found: list) -> None:
    params, opt = model(torch.float32)
    norms = []
    for t in range(4):
        for p in params:
            p.grad = torch.full_like(p, t + 1.0)
        opt.step()
        norms.append(float(opt.last_grad_norm))
    count = sum(SIZES)
    assert norms == pytest.approx([(t + 1) * count**0.5 for t in range(4)], rel=1e-6)


def test_gradients_of_two_dtypes_are_passed_as_lists(found: list) -> None:
    params = [nn.Parameter(torch.ones(70)) for _ in range(2)]
    params[1].grad_dtype = torch.bfloat16
    opt = FusedRAdam(params, lr=0.1, backend="cpu", max_grad_norm=1.0)
    for _ in range(5):
        params[0].grad, params[1].grad = torch.ones(70), torch.ones(70, dtype=torch.bfloat16)
        opt.step()
    assert found
    assert all(sums is None for sums in found)
    assert float(opt.last_grad_norm) == pytest.approx(140**0.5, rel=1e-12)


def test_a_norm_outlives_the_next_step(found: list) -> None:
    """The partial sums are overwritten; what the optimizer shows of them is not."""
    params, opt = model(torch.float32)
    opt.step()
    opt.step()
    before, value = opt.last_grad_norm, float(opt.last_grad_norm)
    for p in params:
        p.grad = torch.zeros_like(p)
    opt.step()
    assert float(before) == value > 0
    assert float(opt.last_grad_norm) == 0.0
