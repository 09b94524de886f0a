"""What a checkpoint does not say stays as the optimizer was made with it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from radam_fused import FusedRAdam

OWN: dict[str, Any] = {
    "rectification": "exact",
    "rho_threshold": 4.0,
    "degenerated_to_sgd": False,
    "seed": 7,
}
"""Options that torch.optim.RAdam's state_dict has no names for."""


def trained(cls: type[torch.optim.Optimizer], **options: Any) -> torch.optim.Optimizer:
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(8, 8))
    opt = cls([p], **options)
    for _ in range(3):
        p.grad = torch.randn(8, 8)
        opt.step()
    return opt


def made(**options: Any) -> FusedRAdam:
    return FusedRAdam([nn.Parameter(torch.randn(8, 8))], **options)


@pytest.mark.parametrize("cls", [torch.optim.RAdam, torch.optim.Adam, torch.optim.AdamW])
def test_options_that_torch_does_not_know_stay(cls: type[torch.optim.Optimizer]) -> None:
    opt = made(lr=0.5, weight_decay=0.5, **OWN)
    opt.load_state_dict(trained(cls, lr=0.25, weight_decay=0.125).state_dict())
    (group,) = opt.param_groups
    assert {name: group[name] for name in OWN} == OWN
    assert (group["lr"], group["weight_decay"]) == (0.25, 0.125)  # what it says is taken
    assert opt.state[group["params"][0]]["step"] == 3


def test_what_an_older_torch_did_not_save_stays() -> None:
    """Its AdamW had no decoupled_weight_decay, its RAdam neither maximize nor capturable."""
    saved = trained(torch.optim.AdamW, weight_decay=0.125).state_dict()
    for name in ("decoupled_weight_decay", "maximize", "capturable", "foreach", "differentiable"):
        saved["param_groups"][0].pop(name, None)
    opt = made(decoupled_weight_decay=True, maximize=True, capturable=True)
    opt.load_state_dict(saved)
    (group,) = opt.param_groups
    assert all(group[name] is True for name in ("decoupled_weight_decay", "maximize", "capturable"))
    assert group["weight_decay"] == 0.125


def test_what_the_checkpoint_says_is_taken() -> None:
    """The negative control: this optimizer's own checkpoints say all of it, for each group."""
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4))
    saved = FusedRAdam([{"params": [first], **OWN}, {"params": [second], "seed": 9}]).state_dict()
    opt = FusedRAdam([{"params": [nn.Parameter(torch.ones(3))]}, {"params": [nn.Parameter(torch.ones(4))]}])
    opt.load_state_dict(saved)
    assert {name: opt.param_groups[0][name] for name in OWN} == OWN
    assert [group["seed"] for group in opt.param_groups] == [7, 9]


def test_each_group_keeps_its_own() -> None:
    params = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    opt = FusedRAdam([{"params": params[:1], "seed": 5}, {"params": params[1:], "seed": 6}])
    other = torch.optim.RAdam([{"params": [nn.Parameter(torch.ones(3))]}, {"params": [nn.Parameter(torch.ones(3))]}])
    saved = other.state_dict()
    before = copy.deepcopy(saved)
    opt.load_state_dict(saved)
    assert [group["seed"] for group in opt.param_groups] == [5, 6]
    assert saved == before  # the caller's


def test_options_of_the_whole_optimizer_stay() -> None:
    """ZeroRedundancyOptimizer saves with its groups all that it was given."""
    saved = trained(torch.optim.RAdam).state_dict()
    saved["param_groups"][0].update(max_grad_norm=1.0, flatten=True)
    opt = made(max_grad_norm=0.5)
    opt.load_state_dict(saved)
    assert not {"max_grad_norm", "flatten"} & opt.param_groups[0].keys()
    for p in opt.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    opt.step()
    assert opt.last_grad_norm == 8.0


def test_error_of_a_loaded_group_names_it() -> None:
    saved = trained(torch.optim.RAdam).state_dict()
    saved["param_groups"][0]["lr"] = -1.0
    with pytest.raises(ValueError, match=r"state_dict: param_groups\[0\]: lr = -1.0: must be"):
        made().load_state_dict(saved)


@pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
def test_grad_norm_group_stays() -> None:
    """Loading keeps it; copies and pickles leave process groups behind."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        opt = made(max_grad_norm=1.0)
        opt.grad_norm_group = dist.group.WORLD
        opt.load_state_dict(opt.state_dict())
        assert opt.grad_norm_group is dist.group.WORLD
        opt.load_state_dict(trained(torch.optim.RAdam).state_dict())
        assert opt.grad_norm_group is dist.group.WORLD
        assert copy.deepcopy(opt).grad_norm_group is None
        assert pickle.loads(pickle.dumps(opt)).grad_norm_group is None
    finally:
        dist.destroy_process_group()
