"""`FusedRAdam` as a torch.optim optimizer: hooks, names, profiler ranges and the ways to pass parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from radam_fused import FusedRAdam
from tests.support.parameter_sets import all_same_bits, both_ways, model, parameters, train


def test_step_hooks() -> None:
    opt = FusedRAdam(parameters((3,)))
    order = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: order.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: order.append("global post")),
        opt.register_step_pre_hook(lambda o, args, kwargs: order.append(("pre", o is opt, args, kwargs))),
        opt.register_step_post_hook(lambda o, args, kwargs: order.append(("post", len(o.state)))),
    ]
    try:
        train(opt, range(1))
    finally:
        for handle in handles:
            handle.remove()
    assert order == ["global pre", ("pre", True, (opt,), {}), ("post", 1), "global post"]
    opt.step()
    assert len(order) == 4


def test_step_pre_hook_may_replace_the_closure() -> None:
    opt = FusedRAdam(parameters((3,)))
    opt.register_step_pre_hook(lambda o, args, kwargs: ((args[0], lambda: 17.0), {}))
    assert opt.step() == 17.0


def test_state_dict_hooks() -> None:
    opt = FusedRAdam(parameters((3,)))
    order = []
    opt.register_state_dict_pre_hook(lambda o: order.append("pre"))
    opt.register_state_dict_post_hook(lambda o, state_dict: {**state_dict, "extra": 5})
    opt.register_load_state_dict_pre_hook(lambda o, state_dict: order.append(("load", state_dict["extra"])))
    opt.register_load_state_dict_post_hook(lambda o: order.append("loaded"))
    opt.load_state_dict(opt.state_dict())
    assert order == ["pre", ("load", 5), "loaded"]


def test_load_state_dict_hook_may_replace_what_is_loaded() -> None:
    opt = FusedRAdam(parameters((3,)))

    def scale_by_half(_: torch.optim.Optimizer, state_dict: dict) -> dict:
        groups = [{**group, "lr": group["lr"] / 2} for group in state_dict["param_groups"]]
        return {**state_dict, "param_groups": groups}

    opt.register_load_state_dict_pre_hook(scale_by_half)
    opt.load_state_dict(opt.state_dict())
    assert opt.param_groups[0]["lr"] == 5e-4


@both_ways
def test_profiler_shows_the_step_under_torchs_names(flatten: bool) -> None:
    opt = FusedRAdam(parameters((3,)), flatten=flatten)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(opt, range(1))
        opt.zero_grad()
    names = {event.key for event in profile.key_averages()}
    assert {"Optimizer.step#FusedRAdam.step", "Optimizer.zero_grad#FusedRAdam.zero_grad"} <= names


def test_repr() -> None:
    lines = repr(FusedRAdam(parameters((3,)), lr=0.25, rho_threshold=4.0)).splitlines()
    assert lines[0] == "FusedRAdam ("
    assert lines.index("    flatten: False") < lines.index("Parameter Group 0") < lines.index("    lr: 0.25")
    assert {"    lr: 0.25", "    rho_threshold: 4.0", "    rectification: first_order"} <= set(lines)


def test_named_parameters() -> None:
    net = model()
    opt = FusedRAdam(net.named_parameters())
    assert opt.param_groups[0]["params"] == list(net.parameters())
    assert opt.state_dict()["param_groups"][0]["param_names"] == ["0.weight", "0.bias", "2.weight", "2.bias"]


INPUTS: dict[str, Callable[[nn.Module], Any]] = {
    "generator": lambda net: net.parameters(),
    "iterator_of_groups": lambda net: iter([{"params": net[0].parameters()}, {"params": net[2].parameters()}]),
    "group_of_one_tensor": lambda net: [{"params": p} for p in net.parameters()],
    "named": lambda net: net.named_parameters(),
    "named_groups": lambda net: [{"params": net.named_parameters(), "lr": 1e-3}],
}


@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS)
def test_ways_to_pass_parameters(make: Callable) -> None:
    nets = model(), model()
    train(FusedRAdam(make(nets[0])), range(8))
    train(FusedRAdam(list(nets[1].parameters())), range(8))
    assert all_same_bits(nets[0].parameters(), nets[1].parameters())
    assert not all_same_bits(nets[0].parameters(), model().parameters())


def test_tied_parameters_take_one_step() -> None:
    net = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    net[1].weight = net[0].weight
    opt = FusedRAdam(net.parameters())
    net(torch.arange(5)).square().mean().backward()
    opt.step()
    assert net[0].weight is net[1].weight
    assert [int(s["step"]) for s in opt.state.values()] == [1]
