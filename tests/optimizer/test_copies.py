"""Copies of model and optimizer, by deepcopy and by pickle, go on with the same bits."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

from radam_fused import FusedRAdam
from tests.support.helpers import by_pickle
from tests.support.parameter_sets import CountCalls, all_same_bits, both_ways, model, parameters, train


@both_ways
@pytest.mark.parametrize("copier", [by_pickle, copy.deepcopy], ids=["pickle", "deepcopy"])
@pytest.mark.parametrize("when", [0, 3, 9], ids=lambda n: f"after_{n}")
def test_copy_of_model_and_optimizer_goes_on_with_the_same_bits(when: int, copier: Callable, flatten: bool) -> None:
    net = model()
    opt = FusedRAdam(net.parameters(), lr=0.01, weight_decay=0.1, rho_threshold=4.0, flatten=flatten)
    train(opt, range(when))
    net2, opt2 = copier((net, opt))
    assert {map(id, net2.parameters())} != {map(id, net.parameters())}
    assert [*map(id, opt2.param_groups[0]["params"])] == [*map(id, net2.parameters())]
    before = [p.detach().clone() for p in net.parameters()]
    train(opt2, range(when, when + 8))
    assert all_same_bits(net.parameters(), before)
    train(opt, range(when, when + 8))
    assert all_same_bits(net.parameters(), net2.parameters())
    moments = [[o.state[p]["exp_avg_sq"] for p in o.param_groups[0]["params"]] for o in (opt, opt2)]
    assert all_same_bits(*moments)
    assert opt2.state_dict()["param_groups"] == opt.state_dict()["param_groups"]


def test_copy_without_the_moments_is_noticed() -> None:
    """The negative control of the test above."""
    net = model()
    train(opt := FusedRAdam(net.parameters(), lr=0.01), range(9))
    net2, opt2 = copy.deepcopy((net, opt))
    opt2.state.clear()
    for each in (opt, opt2):
        train(each, range(9, 17))
    assert not all_same_bits(net.parameters(), net2.parameters())


@pytest.mark.parametrize("copier", [by_pickle, copy.deepcopy], ids=["pickle", "deepcopy"])
def test_copy_keeps_the_backend(copier: Callable) -> None:
    opt = copier(FusedRAdam(parameters((3,)), backend="reference"))
    with CountCalls() as count:
        train(opt, range(1))
    assert count.calls == {"step_reference": 1}
