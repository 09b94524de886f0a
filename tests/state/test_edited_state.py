"""State that users edit, clear or move between two steps counts in the next one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from radam_fused import FusedRAdam
from tests.support.helpers import same_bits
from tests.support.parameter_sets import all_same_bits, both_ways, parameters, train


def edited_pair(edit: Callable[[torch.optim.Optimizer, nn.Parameter], None]) -> list[list[nn.Parameter]]:
    """Parameters of ours and of torch's after 8 steps, an edit of the state of the middle one, and 8 more."""
    result = []
    for make in (FusedRAdam, torch.optim.RAdam):
        params = parameters((3,), (5, 2), (4,))
        opt = make(params, lr=0.02)
        train(opt, range(8))
        edit(opt, params[1])
        train(opt, range(8, 16))
        result.append(params)
    return result


def set_entry(**values: float) -> Callable[[torch.optim.Optimizer, nn.Parameter], None]:
    def edit(opt: torch.optim.Optimizer, p: nn.Parameter) -> None:
        opt.state[p] = {key: torch.full_like(opt.state[p][key], value) for key, value in values.items()}

    return edit


EDITS: dict[str, Callable[[torch.optim.Optimizer, nn.Parameter], Any]] = {
    "step_filled": lambda opt, p: opt.state[p]["step"].fill_(2),
    "step_assigned": lambda opt, p: opt.state[p].update(step=torch.tensor(2.0)),
    "exp_avg_zeroed": lambda opt, p: opt.state[p]["exp_avg"].zero_(),
    "exp_avg_sq_scaled": lambda opt, p: opt.state[p]["exp_avg_sq"].mul_(9.0),
    "exp_avg_assigned": lambda opt, p: opt.state[p].update(exp_avg=torch.ones_like(p)),
    "entry_assigned": set_entry(step=20, exp_avg=0.5, exp_avg_sq=2.0),
    "entry_deleted": lambda opt, p: opt.state.pop(p),
    "entry_emptied": lambda opt, p: opt.state[p].clear(),
    "all_cleared": lambda opt, p: opt.state.clear(),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_edited_state_is_honoured(edit: Callable) -> None:
    for p, q in zip(*edited_pair(edit), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EDITS)
def test_every_edit_changes_the_trajectory(name: str) -> None:
    """The negative control of `test_edited_state_is_honoured`: ignoring the edit would be noticed."""
    edited = edited_pair(EDITS[name])[1][1]
    unedited = edited_pair(lambda opt, p: None)[1][1]
    assert (edited - unedited).abs().max() > 1e-4


@both_ways
def test_cleared_state_starts_again(flatten: bool) -> None:
    params = parameters((3,), (5, 2))
    opt = FusedRAdam(params, flatten=flatten)
    train(opt, range(9))
    opt.state.clear()
    fresh = [nn.Parameter(p.detach().clone()) for p in params]
    for each in (opt, FusedRAdam(fresh, flatten=flatten)):
        train(each, range(9, 18))
    assert all_same_bits(params, fresh)
    assert [int(s["step"]) for s in opt.state.values()] == [9, 9]


def densify(opt: torch.optim.Optimizer, index: int) -> nn.Parameter:
    """What Gaussian splatting does: a longer parameter in the place of the old, its moments moved and extended."""
    group = opt.param_groups[index]
    old = group["params"][0]
    state = opt.state.pop(old)
    for key in ("exp_avg", "exp_avg_sq"):
        state[key] = torch.cat([state[key], torch.zeros(2, *old.shape[1:])])
    new = nn.Parameter(torch.cat([old.detach(), torch.ones(2, *old.shape[1:])]))
    group["params"][0] = new
    opt.state[new] = state
    return new


@both_ways
def test_parameters_replaced_with_moved_state(flatten: bool) -> None:
    trained = []
    for make in (lambda groups: FusedRAdam(groups, flatten=flatten), torch.optim.RAdam):
        params = parameters((6, 3), (6, 1))
        opt = make([{"params": [p], "lr": 0.01 * (i + 1)} for i, p in enumerate(params)])
        train(opt, range(8))
        new = densify(opt, 0)
        train(opt, range(8, 16))
        assert new.shape == (8, 3)
        assert int(opt.state[new]["step"]) == 16
        assert len(opt.state) == 2
        trained.append([new, params[1], opt.state[new]["exp_avg"]])
    for p, q in zip(*trained, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@both_ways
def test_parameter_replaced_by_one_of_the_same_shape(flatten: bool) -> None:
    """The new one is trained from its own start, with neither the old values nor the state that was not moved."""
    params = parameters((6, 3), (4,))
    opt = FusedRAdam(params, flatten=flatten)
    train(opt, range(8))
    new = nn.Parameter(torch.ones(6, 3))
    opt.param_groups[0]["params"][0] = new
    opt.state.pop(params[0])
    left = params[0].detach().clone()
    alone = nn.Parameter(torch.ones(6, 3))
    train(opt, range(8, 16))
    train(FusedRAdam([alone, nn.Parameter(torch.zeros(4))]), range(8, 16))
    assert same_bits(new, alone)
    assert same_bits(params[0], left)


@both_ways
def test_parameter_removed_from_its_group(flatten: bool) -> None:
    params = parameters((6, 3), (4,))
    opt = FusedRAdam(params, flatten=flatten)
    train(opt, range(3))
    removed = opt.param_groups[0]["params"].pop(0)
    before = removed.detach().clone(), params[1].detach().clone()
    train(opt, range(3, 5))
    assert same_bits(removed, before[0])
    assert not same_bits(params[1], before[1])
