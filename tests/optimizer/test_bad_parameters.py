"""Bad parameters: an error that names the parameter, before the optimizer changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam
from tests.support.helpers import same_bits
from tests.support.single_parameters import parameter, step_with_ones


def expanded() -> nn.Parameter:
    return nn.Parameter(torch.ones(1).expand(4))


def overlapping() -> nn.Parameter:
    return nn.Parameter(torch.ones(6).unfold(0, 3, 1))


def with_gradient(tensor: Tensor) -> Tensor:
    """A tensor of any dtype with a gradient; without one nothing is asked of its dtype."""
    tensor.grad = torch.ones_like(tensor)
    return tensor


PARAMETERS: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("empty_list", lambda: [], ValueError, "empty parameter list"),
    ("empty_generator", lambda: iter(()), ValueError, "empty parameter list"),
    ("one_tensor", lambda: torch.ones(3), TypeError, "iterable"),
    ("set", lambda: [{"params": {parameter(3)}}], TypeError, "ordered"),
    ("not_a_tensor", lambda: [3.0], TypeError, "float"),
    ("non-leaf", lambda: [parameter(3) * 2], ValueError, "non-leaf"),
    (
        "integer",
        lambda: [parameter(3), with_gradient(torch.arange(3))],
        TypeError,
        r"\[0\]\['params'\]\[1\] is torch.int64: must be .*torch.float32",
    ),
    (
        "bool",
        lambda: [with_gradient(torch.ones(3, dtype=torch.bool))],
        TypeError,
        "torch.bool: must be one of .*torch.bfloat16",
    ),
    (
        "float8",
        lambda: [nn.Parameter(torch.ones(3).to(torch.float8_e4m3fn))],
        TypeError,
        "torch.float8_e4m3fn: must be one of .*torch.float32",
    ),
    ("sparse", lambda: [nn.Parameter(torch.eye(3).to_sparse())], TypeError, "sparse_coo: must be torch.strided"),
    ("expanded", lambda: [expanded()], ValueError, r"expanded \(strides \(0,\)\)"),
    ("overlapping", lambda: [overlapping()], ValueError, "share memory"),
]


@pytest.mark.parametrize(("make", "error", "message"), [c[1:] for c in PARAMETERS], ids=[c[0] for c in PARAMETERS])
def test_bad_parameters(make: Callable, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FusedRAdam(make())


def test_bad_parameter_is_named_by_its_name() -> None:
    with pytest.raises(TypeError, match=r"parameter 'count' is torch\.int64"):
        FusedRAdam([("weight", parameter(3)), ("count", with_gradient(torch.arange(3)))])


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_duplicate_in_a_group() -> None:
    p = parameter(3)
    with pytest.raises(ValueError, match=r"param_groups\[0\]: a parameter appears twice"):
        FusedRAdam([p, parameter(4), p])


def test_duplicate_across_groups() -> None:
    p = parameter(3)
    with pytest.raises(ValueError, match="more than one parameter group"):
        FusedRAdam([{"params": [p]}, {"params": [parameter(4), p]}])


def shared_pair() -> list[nn.Parameter]:
    values = torch.ones(4)
    return [nn.Parameter(values), nn.Parameter(values)]


ADDED: dict[str, tuple[Callable[[nn.Parameter], Any], dict[str, Any]]] = {
    "duplicate": (lambda old: [parameter(2), old], {}),
    "twice": (lambda old: [parameter(2)] * 2, {}),
    "integer": (lambda old: [parameter(2), with_gradient(torch.arange(3))], {}),
    "expanded": (lambda old: [expanded()], {}),
    "non-leaf": (lambda old: [parameter(2) * 2], {}),
    "bad_lr": (lambda old: [parameter(2)], {"lr": -1.0}),
    "other_differentiable": (lambda old: [parameter(2)], {"differentiable": True}),
    "names_missing": (lambda old: [("name", parameter(2))], {}),
}


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
@pytest.mark.parametrize("flatten", [False, True], ids=["apart", "flatten"])
@pytest.mark.parametrize("steps", [0, 3], ids=["before", "after_3_steps"])
@pytest.mark.parametrize("case", ADDED)
def test_failed_add_param_group_changes_nothing(case: str, steps: int, flatten: bool) -> None:
    make, options = ADDED[case]
    check_failed_add_param_group(make, options, steps, flatten)


@pytest.mark.parametrize("steps", [0, 3], ids=["before", "after_3_steps"])
def test_failed_add_param_group_with_shared_memory_changes_nothing(steps: int) -> None:
    """Only flatten refuses it."""
    check_failed_add_param_group(lambda old: shared_pair(), {}, steps, flatten=True)


def check_failed_add_param_group(make: Callable, options: dict, steps: int, flatten: bool) -> None:
    p, other = parameter(3), parameter(3)
    opt, other_opt = FusedRAdam([p], flatten=flatten), FusedRAdam([other])
    for _ in range(steps):
        step_with_ones(opt)
        step_with_ones(other_opt)
    groups = copy.deepcopy(opt.state_dict()["param_groups"])
    with pytest.raises((ValueError, TypeError, NotImplementedError)):
        opt.add_param_group({"params": make(p), **options})
    assert opt.state_dict()["param_groups"] == groups
    assert [id(q) for q in opt.param_groups[0]["params"]] == [id(p)]
    for _ in range(3):
        step_with_ones(opt)
        step_with_ones(other_opt)
    assert same_bits(p, other)
