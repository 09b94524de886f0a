"""state_dicts of older and other writers, of some parameters only, and loaded over other state."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from radam_fused import FusedRAdam
from tests.support.checkpoints import as_it_was, both_ways, grouped, parameters, same, through_a_file, train, worst
from tests.support.helpers import params_of


@pytest.mark.parametrize(
    "missing",
    ["maximize", "foreach", "capturable", "differentiable", "decoupled_weight_decay", "rho_threshold", "rectification"],
)
def test_group_without_a_key_gets_its_default(missing: str) -> None:
    theirs = torch.optim.RAdam(grouped(parameters()))
    train(theirs, range(6))
    state_dict = copy.deepcopy(theirs.state_dict())
    for group in state_dict["param_groups"]:
        group.pop(missing, None)
    ours = FusedRAdam(grouped(as_it_was(theirs)))
    ours.load_state_dict(state_dict)
    assert missing in ours.param_groups[1]
    for each in (theirs, ours):
        train(each, range(6, 12))
    assert worst(ours, theirs) < 2e-6


@pytest.mark.parametrize(
    "kind", [int, float, torch.tensor, lambda n: torch.tensor([n])], ids=["int", "float", "0-d", "1-d"]
)
@both_ways
def test_step_as_a_number(kind: Callable, flatten: bool) -> None:
    """Old checkpoints of torch hold it so."""
    opt = FusedRAdam(grouped(parameters()), flatten=flatten)
    train(opt, range(6))
    state_dict = copy.deepcopy(opt.state_dict())
    for entry in state_dict["state"].values():
        entry["step"] = kind(6)
    resumed = FusedRAdam(grouped(as_it_was(opt)), flatten=flatten)
    resumed.load_state_dict(state_dict)
    assert same(opt, resumed)
    for each in (opt, resumed):
        train(each, range(6, 9))
    assert same(opt, resumed)


# When it is loaded.


@both_ways
@pytest.mark.parametrize("before", [0, 3], ids=["before_the_first_step", "after_3_steps"])
def test_loaded_over_other_state(before: int, flatten: bool) -> None:
    opt = FusedRAdam(grouped(parameters()), flatten=flatten)
    train(opt, range(6))
    resumed = FusedRAdam(grouped(parameters()), flatten=flatten)
    train(resumed, range(100, 100 + before))
    for p, q in zip(params_of(resumed), params_of(opt), strict=True):
        p.detach().copy_(q.detach())
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    for each in (opt, resumed):
        train(each, range(6, 9))
    assert same(opt, resumed)


@both_ways
def test_empty_state_takes_the_optimizer_back_to_the_start(flatten: bool) -> None:
    opt, fresh = (FusedRAdam(grouped(parameters()), flatten=flatten) for _ in range(2))
    start = copy.deepcopy(opt.state_dict())
    train(opt, range(6))
    opt.load_state_dict(start)
    assert [float(entry["step"]) for entry in opt.state.values()] == [0.0] * (len(params_of(opt)) if flatten else 0)
    for p, q in zip(params_of(opt), params_of(fresh), strict=True):
        p.detach().copy_(q.detach())
        q.grad = None
    for each in (opt, fresh):
        train(each, range(6))
    assert same(opt, fresh)


@both_ways
def test_state_of_some_parameters_only(flatten: bool) -> None:
    """Those that had no gradient before the checkpoint start at step 1 after it."""
    opts = []
    for resume in (False, True):
        params = parameters()
        opt = FusedRAdam(grouped(params), flatten=flatten)
        for t in range(12):
            if resume and t == 6:
                state_dict = through_a_file(opt.state_dict())
                assert [key for key, entry in state_dict["state"].items() if entry["step"] > 0] == [0, 3]
                opt = FusedRAdam(grouped(as_it_was(opt)), flatten=flatten)
                opt.load_state_dict(state_dict)
                params = params_of(opt)
            generator = torch.Generator().manual_seed(t)
            for i, p in enumerate(params):
                p.grad = torch.randn(p.shape, generator=generator) if i in (0, 3) or t >= 8 else None
            opt.step()
        opts.append(opt)
    assert same(*opts)


@both_ways
def test_scheduler_and_optimizer_resume_together(flatten: bool) -> None:
    def make(params: list[nn.Parameter]) -> tuple[FusedRAdam, torch.optim.lr_scheduler.LRScheduler]:
        opt = FusedRAdam(params, lr=0.1, flatten=flatten)
        return opt, torch.optim.lr_scheduler.CosineAnnealingLR(opt, 20)

    def run(opt: FusedRAdam, scheduler: Any, steps: range) -> None:
        for t in steps:
            train(opt, range(t, t + 1))
            scheduler.step()

    opt, scheduler = make(parameters())
    run(opt, scheduler, range(7))
    resumed, resumed_scheduler = make(as_it_was(opt))
    resumed_scheduler.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    resumed.load_state_dict(through_a_file(opt.state_dict()))
    run(opt, scheduler, range(7, 14))
    run(resumed, resumed_scheduler, range(7, 14))
    assert same(opt, resumed)
    assert resumed.param_groups[0]["lr"] == opt.param_groups[0]["lr"] < 0.05
