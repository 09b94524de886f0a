"""torch's distributed state_dict with a fresh optimizer under ``flatten``, whose gradients exist from the start.

torch makes state for a fresh optimizer by a step without a rate, and only where no parameter has a gradient; and it
reads from ``opt.state`` which entries there are to load. Under ``flatten`` the state is therefore there with the
gradients.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

from radam_fused import FusedRAdam
from tests.support.helpers import same_bits

BEFORE, AFTER = 8, 4
FORMATS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "int8": {"state_dtype": torch.int8},
    "split": {"dtype": torch.bfloat16, "master_weights": "split"},
    "stochastic": {"dtype": torch.bfloat16, "rounding": "stochastic", "state_dtype": torch.bfloat16},
    "capturable": {"capturable": True},
    "clipped": {"max_grad_norm": 0.5},
}
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def made(form: str, flatten: bool = True) -> tuple[nn.Module, FusedRAdam]:
    """Two groups and a frozen parameter."""
    torch.manual_seed(0)
    options = dict(FORMATS[form])
    model = nn.Sequential(nn.Linear(64, 80), nn.LayerNorm(80), nn.Linear(80, 5)).to(options.pop("dtype", torch.float32))
    model[2].bias.requires_grad_(False)
    groups = [{"params": [p for p in model.parameters() if p.ndim == d], "lr": 0.01 * d} for d in (1, 2)]
    return model, FusedRAdam(groups, flatten=flatten, weight_decay=0.1, decoupled_weight_decay=True, **options)


def train(model: nn.Module, optimizer: FusedRAdam, steps: range) -> list[Tensor]:
    """The parameters and their state, after some steps."""
    for t in steps:
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(t)
        for p in model.parameters():
            if p.requires_grad:
                value = torch.randn(p.shape, generator=generator).to(p.dtype)
                p.grad = value if p.grad is None else p.grad.add_(value)
        optimizer.step()
    states = [optimizer.state[p] for p in model.parameters() if p.requires_grad]
    return [p.detach().clone() for p in model.parameters()] + [s[name].clone() for s in states for name in sorted(s)]


def save(form: str, folder: Path, options: StateDictOptions | None) -> list[Tensor]:
    model, optimizer = made(form)
    train(model, optimizer, range(BEFORE))
    weights, states = get_state_dict(model, optimizer, options=options)
    dcp.save({"model": weights, "optimizer": states}, checkpoint_id=folder)
    return train(model, optimizer, range(BEFORE, BEFORE + AFTER))


def load(form: str, folder: Path, options: StateDictOptions | None, flatten: bool = True) -> list[Tensor]:
    model, optimizer = made(form, flatten)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(9.0)
    weights, states = get_state_dict(model, optimizer, options=options)
    dcp.load({"model": weights, "optimizer": states}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=states, options=options)
    assert {int(state["step"]) for state in optimizer.state.values()} == {BEFORE}
    return train(model, optimizer, range(BEFORE, BEFORE + AFTER))


@pytest.mark.parametrize("flat_names", [False, True], ids=["nested", "flattened"])
@pytest.mark.parametrize("form", FORMATS)
def test_a_fresh_optimizer_resumes_exactly(form: str, flat_names: bool, tmp_path: Path) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat_names)
    ended = save(form, tmp_path, options)
    assert all(map(same_bits, ended, load(form, tmp_path, options)))
    assert all(map(same_bits, ended, load(form, tmp_path, options, flatten=False)))


def test_steps_without_the_state_end_elsewhere(tmp_path: Path) -> None:
    """The negative control."""
    ended = save("fp32", tmp_path, None)
    model, optimizer = made("fp32")
    weights, _ = get_state_dict(model, optimizer)
    dcp.load({"model": weights}, checkpoint_id=tmp_path)
    model.load_state_dict(weights)
    assert not same_bits(ended[0], train(model, optimizer, range(BEFORE, BEFORE + AFTER))[0])


@pytest.mark.parametrize("flat_names", [False, True], ids=["nested", "flattened"])
def test_set_without_a_look_before(flat_names: bool) -> None:
    """A state_dict from elsewhere into an optimizer that nothing has asked for its own."""
    options = StateDictOptions(flatten_optimizer_state_dict=flat_names)
    model, optimizer = made("fp32")
    train(model, optimizer, range(BEFORE))
    states = get_optimizer_state_dict(model, optimizer, options=options)
    again, resumed = made("fp32")
    again.load_state_dict(model.state_dict())
    set_optimizer_state_dict(again, resumed, states, options=options)
    steps = range(BEFORE, BEFORE + AFTER)
    assert all(map(same_bits, train(model, optimizer, steps), train(again, resumed, steps)))


@pytest.mark.parametrize("form", FORMATS)
def test_a_look_at_a_fresh_optimizer_changes_nothing(form: str) -> None:
    """No step is counted, and no parameter moves: a run that starts after it is the run without."""
    looked, plain = made(form), made(form)
    states = get_optimizer_state_dict(*looked)
    assert {int(state["step"]) for state in states["state"].values()} == {0}
    assert all(map(same_bits, train(*looked, range(AFTER)), train(*plain, range(AFTER))))


def test_a_group_that_is_added_has_its_state_too() -> None:
    model, optimizer = made("fp32")
    more = nn.Linear(3, 3)
    optimizer.add_param_group({"params": list(more.parameters())})
    assert len(optimizer.state) == len(list(model.parameters())) - 1 + 2
    both = nn.ModuleList([model, more])
    with warnings.catch_warnings():
        states = get_optimizer_state_dict(both, optimizer)
    assert set(states["state"]) == {name for name, p in both.named_parameters() if p.requires_grad}


def test_a_parameter_without_a_gradient_has_no_state() -> None:
    """Frozen ones, and all of them without ``flatten``: as torch.optim."""
    model, optimizer = made("fp32")
    assert set(optimizer.state) == {p for p in model.parameters() if p.requires_grad}
    assert not made("fp32", flatten=False)[1].state
