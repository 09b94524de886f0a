"""``flatten=True``: what zero_grad and a step cost does not grow with the number of tensors."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from radam_fused import FusedRAdam
from radam_fused.state.flat_buffers import LOOKED_AT
from tests.support.flat_pairs import small, train


@pytest.mark.parametrize("set_to_none", [True, False], ids=["set_to_none", "set_to_zero"])
def test_zero_grad_zeroes_in_place(set_to_none: bool) -> None:
    params = small(5)
    opt = FusedRAdam(params, flatten=True)
    train(opt, range(1))
    views = [p.grad for p in params]
    assert all(view.all() for view in views)
    opt.zero_grad(set_to_none=set_to_none)
    for p, view in zip(params, views, strict=True):
        assert p.grad.data_ptr() == view.data_ptr()
        assert not view.any()


class CountOperators(TorchDispatchMode):
    def __enter__(self) -> CountOperators:
        self.names: list[str] = []
        self.tensors = 0
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(f"{func.namespace}.{func._opname}")
        if func.namespace == "radam_fused":
            self.tensors += len(args[0]) + len(args[1])
        return func(*args, **(kwargs or {}))


def test_zero_grad_is_one_memset() -> None:
    opt = FusedRAdam(small(), flatten=True)
    train(opt, range(2))
    with CountOperators() as count:
        opt.zero_grad()
    assert [name for name in count.names if name.startswith("aten.")] == ["aten.zero_"]


@pytest.mark.parametrize("replaced", [False, True], ids=["in_place", "replaced"])
def test_zero_grad_after_gradients_were_taken_away(replaced: bool) -> None:
    """It zeroes what p.grad is, also where that has become another tensor; a None stays None."""
    params = small(4)
    opt = FusedRAdam(params, flatten=True)
    train(opt, range(1))
    params[1].grad = None
    if replaced:
        params[2].grad = torch.ones(3)
    opt.zero_grad()
    assert params[1].grad is None
    assert not any(p.grad.any() for p in params if p.grad is not None)


# A step costs the same for one tensor or ten thousand.


@pytest.mark.parametrize("groups", [1, 5])
def test_operator_gets_a_tensor_a_group_not_a_tensor_a_parameter(groups: int) -> None:
    received = []
    for count in (50, 500):
        params = small(count)
        size = count // groups
        opt = FusedRAdam(
            [{"params": params[i : i + size], "lr": 1e-3 + i / count} for i in range(0, count, size)], flatten=True
        )
        train(opt, range(3))
        with CountOperators() as counted:
            opt.step()
        received.append((counted.tensors, len(counted.names)))
    assert received[0] == received[1]
    assert received[0][0] == 2 * groups


def calls_of_a_step(count: int, flatten: bool) -> int:
    opt = FusedRAdam(small(count), flatten=flatten)
    train(opt, range(3))
    calls = 0

    def tally(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(tally)
    try:
        opt.step()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize(
    ("few", "many"), [(64, LOOKED_AT), (2 * LOOKED_AT, 4 * LOOKED_AT)], ids=["looked_at", "counted"]
)
def test_python_calls_do_not_grow_with_the_tensors(few: int, many: int) -> None:
    calls = calls_of_a_step(few, flatten=True)
    assert calls_of_a_step(many, flatten=True) <= calls + 10  # beyond 512 views their references are counted
    assert calls < 1500
