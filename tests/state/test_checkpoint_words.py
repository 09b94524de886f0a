"""What loading says of a checkpoint that it refuses: the place, the value, and what is allowed."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from radam_fused import FusedRAdam
from radam_fused.state.checkpoint import _check_integers
from tests.support.helpers import same_bits


def stepped() -> FusedRAdam:
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = FusedRAdam(params)
    optimizer.step()
    return optimizer


def without(saved: dict[str, Any], *path: Any) -> None:
    for key in path[:-1]:
        saved = saved[key]
    del saved[path[-1]]


def put(saved: Any, *path: Any) -> None:
    *keys, last, value = path
    for key in keys:
        saved = saved[key]
    saved[last] = value


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], None], type[Exception], str]] = {
    "no state": (
        lambda s: without(s, "state"),
        ValueError,
        "state_dict: has no 'state'; it must be what an optimizer's state_dict() returned",
    ),
    "groups of a wrong kind": (
        lambda s: put(s, "param_groups", 5),
        TypeError,
        "state_dict: param_groups = 5: must be a list of dicts",
    ),
    "a group of a wrong kind": (
        lambda s: put(s, "param_groups", 0, 7),
        TypeError,
        "state_dict: param_groups[0] = 7: must be a dict",
    ),
    "params of a wrong kind": (
        lambda s: put(s, "param_groups", 0, "params", 7),
        TypeError,
        "state_dict: param_groups[0]['params'] = 7: must be a list",
    ),
    "no params": (
        lambda s: put(s, "param_groups", 0, {"lr": 0.1}),
        ValueError,
        "state_dict: param_groups[0] has no 'params'; it holds ['lr']",
    ),
    "too few params": (
        lambda s: put(s, "param_groups", 0, "params", [0]),
        ValueError,
        "state_dict: its groups hold [1] parameters, this optimizer's hold [2]",
    ),
    "state of a wrong kind": (
        lambda s: put(s, "state", [1]),
        TypeError,
        "state_dict: state = [1]: must be a dict of dicts",
    ),
    "an entry of a wrong kind": (
        lambda s: put(s, "state", 1, 3.5),
        TypeError,
        "state_dict: state[1] = 3.5: must be a dict",
    ),
    "no step": (
        lambda s: without(s, "state", 1, "step"),
        ValueError,
        "state_dict: the state of param_groups[0]['params'][1] has no 'step'; it holds ['exp_avg', 'exp_avg_sq']",
    ),
    "a step that is a flag": (
        lambda s: put(s, "state", 1, "step", True),
        TypeError,
        "state_dict: 'step' of param_groups[0]['params'][1] is True: must be one number",
    ),
    "half a step": (
        lambda s: put(s, "state", 0, "step", 2.5),
        ValueError,
        "state_dict: 'step' of param_groups[0]['params'][0] is 2.5: must be a whole number, at least 0",
    ),
    "endless steps": (
        lambda s: put(s, "state", 0, "step", torch.tensor(float("inf"))),
        ValueError,
        "state_dict: 'step' of param_groups[0]['params'][0] is inf: must be a whole number, at least 0",
    ),
    "a step before the first": (
        lambda s: put(s, "state", 0, "step", -1),
        ValueError,
        "state_dict: 'step' of param_groups[0]['params'][0] is -1: must be a whole number, at least 0",
    ),
    "differentiable": (
        lambda s: put(s, "param_groups", 0, "differentiable", True),
        ValueError,
        "state_dict: differentiable = True in param_groups[0]: must be as the optimizer's, False",
    ),
    "a hyperparameter": (
        lambda s: put(s, "param_groups", 0, "eps", -1.0),
        ValueError,
        "state_dict: param_groups[0]: eps = -1.0: must be",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_refused_checkpoint_is_named(fault: str) -> None:
    break_it, error, words = FAULTS[fault]
    optimizer = stepped()
    saved = copy.deepcopy(optimizer.state_dict())
    before = copy.deepcopy(saved)
    break_it(saved)
    with pytest.raises(error, match=f"^{re.escape(words)}"):
        optimizer.load_state_dict(saved)
    after = optimizer.state_dict()["state"]
    assert all(same_bits(after[k][name], value) for k, own in before["state"].items() for name, value in own.items())


def test_a_step_of_zero_and_one_that_is_none_are_loaded() -> None:
    """The negative control: what is just allowed."""
    optimizer = stepped()
    saved = copy.deepcopy(optimizer.state_dict())
    put(saved, "state", 0, "step", 0)
    put(saved, "state", 1, None)
    optimizer.load_state_dict(saved)
    first, _ = optimizer.param_groups[0]["params"]
    assert float(optimizer.state[first]["step"]) == 0.0


@pytest.mark.parametrize(("dtype", "low", "high"), [(torch.int8, -128, 127), (torch.int16, -32768, 32767)], ids=str)
def test_integers_in_a_wider_dtype(dtype: torch.dtype, low: int, high: int) -> None:
    _check_integers("codes", torch.tensor([low, 0.0, high]), dtype)
    for wrong in (low - 1.0, high + 1.0, 0.5, float("nan")):
        words = f"codes holds {wrong}: must be integers from {low} to {high}"
        with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
            _check_integers("codes", torch.tensor([1.0, wrong]), dtype)
