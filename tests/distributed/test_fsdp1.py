"""FSDP1 (`FullyShardedDataParallel`), whose checkpoints want all state of a parameter in one dtype: resumed exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel

from radam_fused import FusedRAdam
from tests.distributed.ranks import Failed, Ranks
from tests.distributed.training import mean_loss
from tests.support.helpers import same_bits

BEFORE, AFTER = 7, 3
FORMATS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp16 moments": {"state_dtype": torch.float16},
    "int8": {"state_dtype": torch.int8},
    "bf16": {"dtype": torch.bfloat16},
    "split": {"dtype": torch.bfloat16, "master_weights": "split"},
    "split, bf16 moments": {"dtype": torch.bfloat16, "master_weights": "split", "state_dtype": torch.bfloat16},
    "fp32 masters": {"dtype": torch.bfloat16, "master_weights": "fp32", "state_dtype": torch.bfloat16},
    "kahan": {"dtype": torch.bfloat16, "master_weights": "kahan"},
    "int8, split": {"dtype": torch.bfloat16, "master_weights": "split", "state_dtype": torch.int8},
    "stochastic": {"dtype": torch.bfloat16, "rounding": "stochastic"},
}


def made(form: str, originals: bool) -> tuple[nn.Module, FusedRAdam]:
    torch.manual_seed(0)
    options = dict(FORMATS[form])
    model = nn.Sequential(nn.Linear(8, 1001), nn.Linear(1001, 3)).to(options.pop("dtype", torch.float32))
    model = FullyShardedDataParallel(model, use_orig_params=originals, device_id=torch.device("cpu"))
    return model, FusedRAdam(model.parameters(), lr=0.01, **options)


def train(model: nn.Module, optimizer: FusedRAdam, steps: range) -> list[Tensor]:
    """This rank's parts of the parameters and of their state."""
    for t in steps:
        optimizer.zero_grad()
        mean_loss(model, t).backward()
        optimizer.step()
    params = [p for p in model.parameters() if optimizer.state.get(p)]
    return [t.detach().clone() for p in params for t in (p, *optimizer.state[p].values())]


def resumed(form: str, originals: bool, folder: Path, states_too: bool = True) -> tuple[list[Tensor], list[Tensor]]:
    """A run, and one that goes on from its checkpoint, or from the parameters alone."""
    model, optimizer = made(form, originals)
    train(model, optimizer, range(BEFORE))
    weights, states = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": states}, checkpoint_id=folder)
    straight = train(model, optimizer, range(BEFORE, BEFORE + AFTER))
    model, optimizer = made(form, originals)
    weights, states = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": states} if states_too else {"model": weights}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=states)
    return straight, train(model, optimizer, range(BEFORE, BEFORE + AFTER))


@pytest.mark.sampled
@pytest.mark.parametrize("originals", [False, True], ids=["flat", "originals"])
@pytest.mark.parametrize("form", FORMATS)
def test_checkpoints(form: str, originals: bool, ranks: Ranks, tmp_path: Path) -> None:
    if originals and "int8" in form:  # some ranks' parts are too small for codes, others are not
        outcomes = ranks.outcomes(2, resumed, form, originals, tmp_path)
        assert all(isinstance(outcome, Failed) and "empty_ranks" in outcome.message for outcome in outcomes)
        return
    for ours, theirs in ranks.run(2, resumed, form, originals, tmp_path):
        assert len(ours) == len(theirs) > 2
        assert all(map(same_bits, ours, theirs))


@pytest.mark.parametrize("form", ["split", "kahan", "int8"])
def test_without_its_state_a_run_goes_elsewhere(form: str, ranks: Ranks, tmp_path: Path) -> None:
    """The negative control."""
    for ours, theirs in ranks.run(2, resumed, form, False, tmp_path, False):
        assert not same_bits(ours[0], theirs[0])


def spoilt() -> None:
    model, optimizer = made("split", False)
    train(model, optimizer, range(2))
    packed = optimizer.state_dict()
    packed["state"][0]["master_low"] = packed["state"][0]["master_low"] + 0.5
    optimizer.load_state_dict(packed)


def test_bits_that_are_none_are_refused(ranks: Ranks) -> None:
    for outcome in ranks.outcomes(2, spoilt):
        assert isinstance(outcome, Failed)
        assert outcome.name == "ValueError"
        assert "'master_low' of" in outcome.message
        assert "must be integers from -32768 to 32767" in outcome.message
