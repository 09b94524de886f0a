"""Groups swapped around every step, as DeepSpeed's ZeRO does: buckets are kept by parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from radam_fused import FusedRAdam
from radam_fused.state.bucket import Bucket
from tests.support.helpers import same_bits
from tests.support.mixed_dtypes import give


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.linspace(-1.0, 1.0, 40 + k)) for k in range(3)]


def by_params(opt: torch.optim.Optimizer, params: list[nn.Parameter]) -> None:
    """ZeRO-3: one sub-group at a time in the place of a group's parameters."""
    for p in params:
        opt.param_groups[0]["params"] = [p]
        opt.step()
        opt.param_groups[0]["params"] = []


def by_groups(opt: torch.optim.Optimizer, params: list[nn.Parameter]) -> None:
    """ZeRO-1 and 2: one group at a time in the place of param_groups."""
    groups = opt.param_groups
    for group in groups:
        opt.param_groups = [group]
        opt.step()
    opt.param_groups = groups


def in_another_order(opt: torch.optim.Optimizer, params: list[nn.Parameter]) -> None:
    opt.param_groups.reverse()
    opt.step()


SWAPS: dict[str, tuple[Callable[..., None], bool]] = {
    "by_params": (by_params, False),
    "by_groups": (by_groups, True),
    "in_another_order": (in_another_order, True),
}


def optimizer(make: Any, params: list[nn.Parameter], grouped: bool, **options: Any) -> Any:
    groups = [{"params": [p], "lr": 0.01 * (k + 1)} for k, p in enumerate(params)]
    return make(groups if grouped else params, **({"lr": 0.01} | options))


@pytest.mark.parametrize(("swap", "grouped"), SWAPS.values(), ids=SWAPS)
@pytest.mark.parametrize("first", ["swapped", "ordinary"])
@pytest.mark.parametrize(
    "options", [{}, {"state_dtype": torch.int8}, {"max_grad_norm": 1e9}], ids=["fp32", "int8", "clip"]
)
def test_swapped_groups_make_no_layout(
    swap: Callable[..., None], grouped: bool, first: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = parameters(), parameters()
    opt, other = optimizer(FusedRAdam, ours, grouped, **options), optimizer(FusedRAdam, theirs, grouped, **options)
    for t in range(3):
        give(ours, t)
        give(theirs, t)
        opt.step() if first == "ordinary" else swap(opt, ours)
        if not grouped and first == "swapped":
            opt.param_groups[0]["params"] = list(ours)
        other.step()
    made, copied = [], []
    monkeypatch.setattr(Bucket, "__init__", lambda *args, **kwargs: made.append(args))
    monkeypatch.setattr(Bucket, "load_state", lambda *args: copied.append(args))
    for t in range(3, 13):
        give(ours, t)
        give(theirs, t)
        swap(opt, ours)
        other.step()
    assert made == copied == []
    assert all(same_bits(p, q) for p, q in zip(ours, theirs, strict=True))
    assert all(float(opt.state[p]["step"]) == 13.0 for p in ours)


def test_a_replaced_parameter_makes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: what really is new gets a bucket."""
    params = parameters()
    opt = optimizer(FusedRAdam, params, False)
    give(params, 0)
    opt.step()
    made = []
    init = Bucket.__init__
    monkeypatch.setattr(Bucket, "__init__", lambda self, *args: made.append(1) or init(self, *args))
    new = nn.Parameter(torch.ones(7))
    opt.param_groups[0]["params"] = [new, *params[1:]]
    give([new, *params[1:]], 1)
    opt.step()
    assert made == [1]


def test_a_parameter_in_no_group_is_not_stepped() -> None:
    params = parameters()
    opt = optimizer(FusedRAdam, params, False)
    for t in range(2):
        give(params, t)
        opt.step()
    before = params[1].detach().clone()
    opt.param_groups[0]["params"] = [params[0], params[2]]
    give(params, 2)
    opt.step()
    assert same_bits(params[1], before)
    assert [float(opt.state[p]["step"]) for p in params] == [3.0, 2.0, 3.0]
    opt.param_groups[0]["params"] = params
    opt.step()
    assert [float(opt.state[p]["step"]) for p in params] == [4.0, 3.0, 4.0]


def test_parameters_put_into_a_group_one_after_another_draw_different_numbers() -> None:
    """As DeepSpeed's ZeRO 3 does with its sub-groups: what they draw is what they draw all in one group."""

    def made() -> list[nn.Parameter]:
        return [nn.Parameter(torch.linspace(-1.0, 1.0, 300).bfloat16()) for _ in range(3)]

    def give(params: list[nn.Parameter], t: int) -> None:
        generator = torch.Generator().manual_seed(t)
        grad = torch.randn(300, generator=generator).bfloat16()
        for p in params:
            p.grad = grad.clone()

    params, expected = made(), made()
    opt, whole = FusedRAdam(params, rounding="stochastic"), FusedRAdam(expected, rounding="stochastic")
    for t in range(4):
        give(params, t)
        give(expected, t)
        for p in params:
            opt.param_groups[0]["params"] = [p]
            opt.step()
        whole.step()
    assert all(torch.equal(p, q) for p, q in zip(params, expected, strict=True))
    assert not torch.equal(params[0], params[1])  # alike in all but their random numbers


@pytest.mark.parametrize("flatten", [False, True], ids=["separate", "flatten"])
def test_parameters_replaced_before_the_first_step_leave_no_state(flatten: bool) -> None:
    """As DeepSpeed's ZeRO does, whose checkpoints then hold this optimizer's state_dict."""
    opt = FusedRAdam(parameters(), lr=0.01, flatten=flatten)
    partition = torch.linspace(-1.0, 1.0, 60, requires_grad=True)
    expected = partition.detach().clone().requires_grad_()
    other = FusedRAdam([expected], lr=0.01)
    opt.param_groups[0]["params"] = [partition]
    for t in range(8):
        give([partition], t)
        expected.grad = partition.grad.clone()
        opt.step()
        other.step()
    assert same_bits(partition, expected)
    assert list(opt.state) == [partition]
    assert opt.state_dict()["state"].keys() == {0}


def test_parameters_that_have_stepped_keep_their_state_under_flatten() -> None:
    """The negative control, and that they go on where they were once they are back."""
    params = parameters()
    opt = FusedRAdam(params, lr=0.01, flatten=True)
    give(params, 0)
    opt.step()
    new = nn.Parameter(torch.ones(7))
    opt.param_groups[0]["params"] = [new]
    give([new], 1)
    opt.step()
    opt.param_groups[0]["params"] = [new, *params]
    give([new, *params], 2)
    opt.step()
    assert [float(opt.state[p]["step"]) for p in (new, *params)] == [2.0, 2.0, 2.0, 2.0]
