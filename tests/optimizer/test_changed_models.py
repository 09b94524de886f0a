"""Models that are moved, loaded or replaced between two steps."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from radam_fused import FusedRAdam
from tests.support.helpers import all_same_bits
from tests.support.training_steps import TOLERANCE, both_ways, contents, deviation, give, native, noise, small, train

pytestmark = pytest.mark.filterwarnings("ignore:grad and param do not obey the gradient layout")  # on purpose


AROUND: dict[str, dict[str, Any]] = {
    "plain": {},
    "capturable": {"capturable": True},
    "clip": {"max_grad_norm": 1.0},
    "zero_grads": {"zero_grads": True},
}


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 7, bias=False))
    net[2].weight = net[0].weight  # tied
    return net


def backward(net: nn.Module, t: int) -> None:
    net(torch.arange(t, t + 5) % 7).square().mean().backward()


@pytest.mark.parametrize("options", AROUND.values(), ids=AROUND)
@both_ways
def test_tied_model_that_loads_another_state(flatten: bool, options: dict) -> None:
    nets = model(), model()
    opts = (
        FusedRAdam(nets[0].parameters(), lr=0.01, flatten=flatten, **options),
        torch.optim.RAdam(nets[1].parameters(), lr=0.01),
    )
    start = copy.deepcopy(nets[0].state_dict())
    for t in range(12):
        if t == 7:
            for net in nets:
                net.load_state_dict(start)
        for net, opt in zip(nets, opts, strict=True):
            opt.zero_grad()
            backward(net, t)
            if options.get("max_grad_norm") and opt is opts[1]:
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            opt.step()
    assert nets[0][2].weight is nets[0][0].weight
    assert len(opts[0].state) == 3
    assert all(
        deviation(p, q) < 10 * TOLERANCE for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True)
    )


@pytest.mark.parametrize("options", AROUND.values(), ids=AROUND)
@native
def test_model_moved_to_bfloat16_between_steps(name: str, options: dict) -> None:
    """Moments and counts stay; the steps are those of bfloat16 parameters that start with this state."""
    net = nn.Linear(4, 3)
    opt = FusedRAdam(net.parameters(), lr=0.1, backend=name, **options)
    train(opt, range(4))
    state_dict = copy.deepcopy(opt.state_dict())
    net.bfloat16()
    copies = [nn.Parameter(p.detach().clone()) for p in net.parameters()]
    other = FusedRAdam(copies, lr=0.1, backend=name, **options)
    other.load_state_dict(state_dict)
    for each in (opt, other):
        for p in each.param_groups[0]["params"]:
            p.grad = None
        train(each, range(4, 9))
    assert all_same_bits(contents(opt), contents(other))
    assert [int(s["step"]) for s in opt.state.values()] == [9, 9]


@pytest.mark.parametrize("options", AROUND.values(), ids=AROUND)
@native
def test_model_moved_to_float64_between_steps_is_an_error(name: str, options: dict) -> None:
    net = nn.Linear(4, 3)
    opt = FusedRAdam(net.named_parameters(), backend=name, **options)
    train(opt, range(4))
    net.double()
    for p in net.parameters():
        p.grad = None
    give(list(net.parameters()), 4)
    before = contents(opt)
    with pytest.raises(TypeError, match=r"parameter 'weight' is now torch.float64: its state was made for"):
        opt.step()
    assert all_same_bits(contents(opt), before)


def test_model_moved_in_part_is_an_error_with_a_way_out() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    opt = FusedRAdam(net.parameters())
    train(opt, range(4))
    net[0].bfloat16()
    net.zero_grad()
    give(list(net.parameters()), 4)
    before = contents(opt)
    with pytest.raises(TypeError, match=r"\[2\] is now torch.float32 and .*\[0\] torch.bfloat16: .*load_state_dict"):
        opt.step()
    assert all_same_bits(contents(opt), before)
    opt.load_state_dict(opt.state_dict())
    assert all_same_bits(contents(opt), before)
    opt.step()
    assert [int(s["step"]) for s in opt.state.values()] == [5] * 4


@pytest.mark.parametrize("options", AROUND.values(), ids=AROUND)
def test_replaced_storage_of_a_flat_parameter_is_an_error(options: dict) -> None:
    """Before anything is written, gradients and counts included."""
    params = small()
    opt = FusedRAdam(params, flatten=True, **options)
    train(opt, range(3))
    params[1].data = params[1].data.clone()
    give(params, 3)
    before, grads = contents(opt), [p.grad.clone() for p in params]
    with pytest.raises(RuntimeError, match=r"flatten=True: the storage of param_groups\[0\]\['params'\]\[1\] has been"):
        opt.step()
    assert all_same_bits(contents(opt), before)
    assert all_same_bits([p.grad for p in params], grads)


@pytest.mark.parametrize("options", AROUND.values(), ids=AROUND)
@native
def test_step_that_fails_counts_nothing(name: str, options: dict) -> None:
    """A gradient of another shape, in the last parameter; then it fits again."""
    opt, whole = (FusedRAdam(small(), lr=0.1, backend=name, **options) for _ in range(2))
    train(opt, range(3))
    params = opt.param_groups[0]["params"]
    give(params, 3)
    params[1].data = params[1].data[:4].clone()
    params[1].grad = noise((4,), 1)
    kept, before = whole.param_groups[0]["params"][1], [t for i, t in enumerate(contents(opt)) if i // 4 != 1]
    with pytest.raises(ValueError, match=r"\[1\] is now \(4,\)"):
        opt.step()
    assert all_same_bits([t for i, t in enumerate(contents(opt)) if i // 4 != 1], before)
    train(whole, range(3))
    params[1].data = kept.detach().clone()
    params[1].grad = None
    for each in (opt, whole):
        train(each, range(3, 9))
    assert all_same_bits(contents(opt), contents(whole))


@pytest.mark.parametrize("options", AROUND.values(), ids=AROUND)
def test_memory_format_changed_between_steps(options: dict) -> None:
    """The launch finds other strides, the moments follow, and the step counts once."""
    shape = (4, 6, 5, 7)
    trained = []
    for change in (False, True):
        p = nn.Parameter(noise(shape, 0))
        opt = FusedRAdam([p], lr=0.01, **{**options, **({"max_grad_norm": 1e9} if "max_grad_norm" in options else {})})
        for t in range(9):
            if t == 6 and change:
                p.data = p.data.to(memory_format=torch.channels_last)
                p.grad = None
            give([p], t)
            opt.step()
        assert int(opt.state[p]["step"]) == 9
        trained.append(contents(opt))
    assert all_same_bits(*trained)


EDITS: dict[str, Callable[[torch.optim.Optimizer, nn.Parameter], Any]] = {
    "entry_dropped": lambda opt, p: opt.state.pop(p),
    "step_assigned": lambda opt, p: opt.state[p].update(step=torch.tensor(3.0)),
    "moment_assigned": lambda opt, p: opt.state[p].update(exp_avg_sq=torch.ones_like(p)),
    "nothing": lambda opt, p: None,
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("options", AROUND.values(), ids=AROUND)
@both_ways
def test_state_edited_before_a_group_is_added(flatten: bool, options: dict, edit: Callable) -> None:
    """Both before the next step, which is to see both."""
    if "max_grad_norm" in options:
        options = {"max_grad_norm": math.inf}
    opts = FusedRAdam(small(), lr=0.1, flatten=flatten, **options), torch.optim.RAdam(small(), lr=0.1)
    for opt in opts:
        train(opt, range(8))
        edit(opt, opt.param_groups[0]["params"][0])
        opt.add_param_group({"params": [nn.Parameter(torch.ones(3))], "lr": 0.01})
        train(opt, range(8, 12))
    assert all(deviation(a, b) < 10 * TOLERANCE for a, b in zip(contents(opts[0]), contents(opts[1]), strict=True))
