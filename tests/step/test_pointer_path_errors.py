"""The pointer path raises the errors of the tensor-list path, and hides nothing from a dispatch mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam
from radam_fused.cpp_helpers import prepare_step
from radam_fused.step.plan import whole_plan
from tests.support.helpers import same_bits
from tests.support.pointer_path import STEPS, parameters

LAZY: dict[str, tuple[Callable[[], Tensor], float]] = {
    "negative": (lambda: torch.tensor([1 + 2j]).conj().imag, -2.0),
    "negative_scalar": (lambda: torch.tensor(1 + 2j).conj().imag, -2.0),
    "zero": (lambda: torch._efficientzerotensor((1,)), 0.0),
    "view_of_more": (lambda: torch.arange(4.0)[2:3], 2.0),
}


@pytest.mark.parametrize(("lazy", "value"), LAZY.values(), ids=list(LAZY))
def test_gradient_that_is_not_what_memory_holds(
    lazy: Callable[[], Tensor], value: float, pointer_calls: list[bool]
) -> None:
    """Row-major by their strides, but torch negates them as it reads, or has no memory for them."""
    results = []
    for literal in (False, True):
        p = nn.Parameter(torch.ones(lazy().shape))
        opt = FusedRAdam([p], backend="cpu")
        first_way = []
        for t in range(STEPS):
            grad = torch.full_like(p, value) if literal or t < 4 else lazy()
            assert grad.is_contiguous()
            p.grad = grad
            pointer_calls.clear()
            opt.step()
            first_way.append(
                pointer_calls[0]
            )  # a second launch follows where the operator wants the gradient written out
        results.append(p.detach())
        plain = literal or lazy is LAZY["view_of_more"][0]
        assert first_way == [False] + [True] * 3 + [plain] * (STEPS - 4)
    assert same_bits(*results)
    # The negative control: the other sign shows.
    p = nn.Parameter(torch.ones(lazy().shape))
    p.grad = torch.full_like(p, -value or 1.0)
    FusedRAdam([p], backend="cpu").step()
    assert not same_bits(p.detach(), results[0])


BROKEN: dict[str, tuple[Callable[[nn.Parameter], None], type[Exception], str]] = {
    "sparse": (lambda p: setattr(p, "grad", torch.ones(17, 5).to_sparse()), RuntimeError, "sparse"),
    "moved": (lambda p: setattr(p, "data", torch.ones(5, 17)), ValueError, "is now"),
    "dtype": (lambda p: setattr(p, "data", p.data.double()), TypeError, "is now torch.float64"),
}


@pytest.mark.parametrize(("spoil", "error", "message"), BROKEN.values(), ids=list(BROKEN))
def test_errors_are_those_of_the_lists(spoil: Callable, error: type[Exception], message: str) -> None:
    params = parameters(torch.float32)
    opt = FusedRAdam(params, backend="cpu")
    for _ in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        opt.step()
    params[3].grad = None
    spoil(params[3])
    if params[3].grad is None:
        params[3].grad = torch.ones_like(params[3])
    before = [p.detach().clone() for p in params]
    with pytest.raises(error, match=message):
        opt.step()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert opt.state[params[0]]["step"] == 2


@pytest.mark.parametrize("hold_gil", [True, False], ids=["alone", "beside_other_threads"])
def test_an_error_of_the_operator_says_what_it_says(hold_gil: bool) -> None:
    params = parameters(torch.float32)
    opt = FusedRAdam(params, backend="cpu")
    for p in params:
        p.grad = torch.ones_like(p)
    for _ in range(2):
        opt.step()
    bucket = opt._bucket_manager.buckets[0]
    plan = whole_plan(bucket)
    pointers = plan.pointer_table
    too_short = bucket.exp_avg_sq[1:]
    tensors = pointers.table, bucket.exp_avg, too_short, plan.segments, plan.scalar_index, None, None, None
    pointers._prepared = prepare_step(pointers._pairs, hold_gil, tensors, False)
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match="exp_avg and exp_avg_sq must be flat buffers of one size"):
        opt.step()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert opt.state[params[0]]["step"] == 2


def test_nothing_is_hidden_from_a_dispatch_mode() -> None:
    """A dispatch mode that looks at operators sees the parameters that are written."""

    class Looking(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    params = parameters(torch.float32)
    opt = FusedRAdam(params, backend="cpu")
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    with Looking():
        opt.step()
    assert "radam_fused.step_native.default" in seen


def test_version_counters_rise() -> None:
    params = parameters(torch.float32)
    opt = FusedRAdam(params, backend="cpu", zero_grads=True)
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    before = [(p._version, p.grad._version) for p in params]
    opt.step()
    assert [(p._version, p.grad._version) for p in params] == [(a + 1, b + 1) for a, b in before]


def test_counts_under_a_dispatch_mode_are_an_operator() -> None:
    """A mode that looks at operators sees that the counts are written; else no operator is needed for it."""
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    opt = FusedRAdam([p], backend="cpu")
    for _ in range(2):
        opt.step()
    seen = []

    class Looking(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Looking():
        opt.step()
    assert "aten.add_.Tensor" in seen
    opt.step()
    assert opt.state[p]["step"] == 4
