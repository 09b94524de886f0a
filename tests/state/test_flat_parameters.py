"""``flatten=True``: parameters that are taken out of the flat buffer, or share memory, are errors that name them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from radam_fused import FusedRAdam
from tests.support.flat_pairs import MANY, give, pair, replace, same, small, train
from tests.support.helpers import params_of, same_bits


def double(opt: FusedRAdam) -> None:
    for p in params_of(opt):
        p.grad = None
    nn.ParameterList(params_of(opt)).to(torch.float64)


def replace_and_drop(index: int) -> Callable[[FusedRAdam], Any]:
    return lambda opt: replace(index)(opt) is None


TAKEN: dict[str, tuple[Callable[[FusedRAdam], Any], int]] = {
    "first": (replace_and_drop(0), 0),
    "last": (replace_and_drop(MANY - 1), MANY - 1),
    "model_to_float64": (double, 0),
}


@pytest.mark.parametrize(("take", "index"), TAKEN.values(), ids=TAKEN)
def test_replaced_parameter_storage_is_an_error_that_names_it(take: Callable, index: int) -> None:
    opt = FusedRAdam(small(), flatten=True)
    train(opt, range(3))
    held = take(opt)
    for i, p in enumerate(params_of(opt)):
        give(p, i)
    before = copy.deepcopy([[p.detach(), opt.state[p]] for p in params_of(opt)])
    with pytest.raises(RuntimeError, match=rf"flatten=True: .*param_groups\[0\]\['params'\]\[{index}\].*flatten=False"):
        opt.step()
    for p, (value, state) in zip(params_of(opt), before, strict=True):
        assert same_bits(p, value)
        assert all(same_bits(opt.state[p][key], state[key]) for key in state)
    del held


def test_weights_swapped_and_swapped_back_between_steps() -> None:
    """As for an evaluation with averaged weights."""
    opts = pair()
    for opt in opts:
        train(opt, range(3))
        for p in params_of(opt):
            own = p.data
            p.data = torch.zeros_like(own)
            p.data = own
        train(opt, range(3, 6))
    assert same(*opts)


def one_tensor() -> list[nn.Parameter]:
    values = torch.ones(4)
    return [nn.Parameter(values), nn.Parameter(torch.ones(2)), nn.Parameter(values)]


def overlapping() -> list[nn.Parameter]:
    values = torch.ones(6)
    return [nn.Parameter(values[:4]), nn.Parameter(torch.ones(2)), nn.Parameter(values[2:])]


@pytest.mark.parametrize("make", [one_tensor, overlapping], ids=["same", "overlapping"])
def test_shared_memory_is_refused(make: Callable) -> None:
    params = make()
    addresses = [p.data_ptr() for p in params]
    with pytest.raises(ValueError, match=r"flatten=True: .*\[2\].*\[0\] share memory; .*flatten=False"):
        FusedRAdam(params, flatten=True)
    assert [p.data_ptr() for p in params] == addresses


def test_memory_shared_with_an_earlier_group_is_refused() -> None:
    """Copied into a buffer of its own, the parameter would silently be tied no longer."""
    params = small(2)
    opt = FusedRAdam([params[0]], flatten=True)
    params[1].data = params[0].data
    with pytest.raises(ValueError, match="share memory"):
        opt.add_param_group({"params": [params[1]]})
    assert len(opt.param_groups) == 1


def test_neighbours_in_one_storage_are_no_shared_memory() -> None:
    """The negative control of the tests above."""
    values = torch.ones(6)
    opt = FusedRAdam([nn.Parameter(values[:3]), nn.Parameter(values[3:])], flatten=True)
    train(opt, range(2))
    assert values.tolist() == [1.0] * 6
