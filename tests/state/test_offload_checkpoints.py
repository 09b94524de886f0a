"""``offload=True``: checkpoints, copies, added groups and edited state."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.support.helpers import filled
from tests.support.offloaded import Count, model, results, same, train


@pytest.mark.parametrize("before", [False, True], ids=["from gpu", "from offload"])
@pytest.mark.parametrize("after", [False, True], ids=["to gpu", "to offload"])
def test_checkpoints_both_ways(before: bool, after: bool, small_slots: None) -> None:
    expected = train(*model(), range(10))
    params, opt = model(offload=before)
    train(params, opt, range(5))
    others, resumed = model(offload=after)
    with torch.no_grad():
        for p, q in zip(others, params, strict=True):
            p.copy_(q)
    resumed.load_state_dict(pickle.loads(pickle.dumps(opt.state_dict())))
    assert same(train(others, resumed, range(5, 10)), expected)


def test_checkpoint_of_torch(small_slots: None) -> None:
    params, _ = model()
    theirs = torch.optim.RAdam([{"params": params[::2]}, {"params": params[1::2]}])
    for p in params:
        p.grad = torch.ones_like(p)
    theirs.step()
    results_of_both = []
    for offloaded in (True, False):
        own, opt = model(offload=offloaded)
        opt.load_state_dict(copy.deepcopy(theirs.state_dict()))
        results_of_both.append(train(own, opt, range(6)))
    assert same(*results_of_both)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))], ids=["deepcopy", "pickle"]
)
def test_copies_are_offloaded(duplicate: Callable, use_transfer: Callable, small_slots: None) -> None:
    params, opt = model(offload=True, zero_grads=True)
    expected = copy.deepcopy(train(params, opt, range(5)))
    copied = duplicate(opt)
    own = [copied.param_groups[k % 2]["params"][k // 2] for k in range(len(params))]
    assert same(results(own, copied), expected)
    use_transfer(count := Count())
    copied.load_state_dict(copied.state_dict())
    assert same(train(own, copied, range(5, 8)), train(params, opt, range(5, 8)))
    assert count.moved["down"] > 0


def test_added_groups(small_slots: None) -> None:
    trained = []
    for offloaded in (True, False):
        params, opt = model(offload=offloaded)
        train(params, opt, range(3))
        late = nn.Parameter(filled("channels_last", torch.float64, 7))
        opt.add_param_group({"params": [late], "lr": 0.1})
        trained.append(train([*params, late], opt, range(3, 8)))
    assert same(*trained)


def test_edited_parameters_and_state(small_slots: None) -> None:
    """Parameters are read again in every step, and the moments are the ones that the state shows."""
    trained = []
    for offloaded in (True, False):
        params, opt = model(offload=offloaded)
        train(params, opt, range(6))
        with torch.no_grad():
            params[0].mul_(-2.0)
        opt.state[params[1]]["exp_avg"].zero_()
        opt.state[params[3]]["exp_avg_sq"] = torch.ones(7, 300)
        trained.append(train(params, opt, range(6, 9)))
    assert same(*trained)


def test_compiled_steps_are_refused() -> None:
    params, opt = model(offload=True)
    train(params, opt, range(1))
    before = copy.deepcopy(results(params, opt))
    torch.compiler.reset()
    with pytest.raises(Exception, match=r"offload=True under torch\.compile: step outside of"):
        torch.compile(opt.step, backend="eager")()
    assert same(results(params, opt), before)
