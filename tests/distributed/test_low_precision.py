"""FSDP2 with state in fewer bits: what a rank stores, and checkpoints of it.

Blocks of codes are a rank's own, so runs of another number of ranks are other runs. What has to hold is that a run is
what one process makes of a rank's parts, that a checkpoint goes on with the same bits at the same number of ranks, and
close by at another.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from radam_fused import FusedRAdam
from radam_fused.numerics.layout import rng_offset_of, segment_starts
from radam_fused.state import bucket_builder
from tests.distributed.ranks import Ranks
from tests.distributed.test_checkpoints import gradient
from tests.support.helpers import same_bits

BEFORE, AFTER = 8, 4
FORMATS: dict[str, dict[str, Any]] = {
    "int8": {"state_dtype": torch.int8},
    "int8-split": {"state_dtype": torch.int8, "master_weights": "split"},
    "int8-stochastic": {"state_dtype": torch.int8, "rounding": "stochastic"},
    "bf16-stochastic": {"state_dtype": torch.bfloat16, "rounding": "stochastic"},
    "bf16-fp32": {"state_dtype": torch.bfloat16, "master_weights": "fp32"},
    "fp16-kahan": {"state_dtype": torch.float16, "master_weights": "kahan"},
    "fp32-int8": {"state_dtype": torch.int8},
}
"""Of bfloat16 parameters, but for the last, of float32 ones."""


def made(form: str, shard: bool = True) -> tuple[nn.Module, FusedRAdam]:
    """A matrix of which every rank of up to four holds blocks of codes, and a vector too small for them."""
    torch.manual_seed(0)
    model = nn.Linear(129, 1031, dtype=torch.float32 if form == "fp32-int8" else torch.bfloat16)
    if shard:
        fully_shard(model)
    return model, FusedRAdam(model.parameters(), lr=0.01, seed=3, **FORMATS[form])


def train(model: nn.Module, optimizer: FusedRAdam, steps: range) -> None:
    for t in steps:
        for k, p in enumerate(model.parameters()):
            p.grad = gradient(p, k, t)
        optimizer.step()


def local(tensor: Tensor) -> Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach().clone()


def values(model: nn.Module, optimizer: FusedRAdam) -> list[Tensor]:
    params = list(model.parameters())
    return [local(t) for p in params for t in (p, *(optimizer.state[p][name] for name in sorted(optimizer.state[p])))]


def straight(form: str, elsewhere: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """A run over shards, and the same parts as plain tensors, with the same random numbers or some further on."""
    model, optimizer = made(form)
    parts = [nn.Parameter(local(p)) for p in model.parameters()]
    alone = FusedRAdam(parts, lr=0.01, seed=3, backend="reference", **FORMATS[form])
    starts = segment_starts([p.numel() for p in model.parameters()])[0]
    begin = {part: rng_offset_of(p, at) for part, p, at in zip(parts, model.parameters(), starts, strict=True)}
    for t in range(BEFORE):
        for k, (p, part) in enumerate(zip(model.parameters(), parts, strict=True)):
            p.grad = gradient(p, k, t)
            part.grad = local(p.grad)
        optimizer.step()
        with mock.patch.object(bucket_builder, "rng_offset_of", lambda part, _: begin[part] + elsewhere):
            alone.step()
    return values(model, optimizer), values(nn.ParameterList(parts), alone)


@pytest.mark.parametrize("form", FORMATS)
def test_as_one_process_with_the_same_parts(form: str, ranks: Ranks) -> None:
    for ours, theirs in ranks.run(2, straight, form):
        assert len(ours) == len(theirs)
        assert all(map(same_bits, ours, theirs))
    for ours, theirs in ranks.run(2, straight, form, 8):  # the negative control
        assert not all(map(same_bits, ours, theirs))


def save(form: str, folder: Path) -> list[Tensor]:
    model, optimizer = made(form)
    train(model, optimizer, range(BEFORE))
    weights, states = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": states}, checkpoint_id=folder)
    train(model, optimizer, range(BEFORE, BEFORE + AFTER))
    return values(model, optimizer)


def load(form: str, folder: Path, shard: bool, weights_alone: bool = False) -> tuple[list[Tensor], list[Tensor]]:
    """What a run that goes on from a checkpoint ends with, and its whole parameters."""
    model, optimizer = made(form, shard)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(9.0)
    weights, states = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": states}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=states)
    if weights_alone:
        optimizer = FusedRAdam(model.parameters(), lr=0.01, seed=3, **FORMATS[form])
    train(model, optimizer, range(BEFORE, BEFORE + AFTER))
    whole = [p.full_tensor() if isinstance(p, DTensor) else p.detach() for p in model.parameters()]
    return values(model, optimizer), [tensor.detach().clone() for tensor in whole]


@pytest.mark.parametrize("form", FORMATS)
def test_checkpoints(form: str, ranks: Ranks, tmp_path: Path) -> None:
    """The same bits at the same number of ranks; at others parameters that differ no more than rounding does."""
    ended = ranks.run(2, save, form, tmp_path)
    resumed = ranks.run(2, load, form, tmp_path, True)
    for ours, (theirs, _) in zip(ended, resumed, strict=True):
        assert all(map(same_bits, ours, theirs))
    exact = resumed[0][1]
    for world in (1, 3, 4):
        for _, found in ranks.run(world, load, form, tmp_path, True):
            assert max(map(apart, found, exact)) < 0.01
    for _, found in ranks.run(3, load, form, tmp_path, True, True):  # the negative control: a fresh optimizer
        assert min(map(apart, found, exact)) > 0.03


def apart(a: Tensor, b: Tensor) -> float:
    """How far a tensor is from another, as a part of that."""
    return float((a.float() - b.float()).norm() / b.float().norm())


def test_fewer_steps_are_another_run(ranks: Ranks, tmp_path: Path) -> None:
    """The negative control of comparing bits."""
    ended = ranks.run(2, save, "int8", tmp_path)
    other = ranks.run(2, straight, "int8")
    assert not all(map(same_bits, ended[0], other[0][0]))


def float32_weights(shard: bool) -> tuple[list[Tensor], bool]:
    """The whole float32 weights after some steps, and whether each is distributed as its parameter."""
    torch.manual_seed(0)
    model = nn.Linear(129, 1031, dtype=torch.bfloat16)
    if shard:
        fully_shard(model)
    optimizer = FusedRAdam(model.parameters(), lr=0.01, master_weights="split")
    train(model, optimizer, range(BEFORE))
    found: list[Any] = [optimizer.float32_weight(p) for p in model.parameters()]
    pairs = zip(found, model.parameters(), strict=True)
    alike = shard and all(x.placements == p.placements and x.shape == p.shape for x, p in pairs)
    return [x.full_tensor() if shard else x for x in found], alike


def test_float32_weights_are_those_of_one_process(ranks: Ranks) -> None:
    whole, _ = float32_weights(False)
    for weights, alike in ranks.run(2, float32_weights, True):
        assert alike
        assert all(map(same_bits, weights, whole))
        assert not any(same_bits(x, x.bfloat16().float()) for x in weights)  # the negative control
