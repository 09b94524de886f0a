"""FSDP2 (`fully_shard`) on meshes of one and two dimensions, and with tensor parallel: the bits of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from radam_fused import FusedRAdam
from tests.distributed.ranks import Ranks
from tests.distributed.training import (
    OPTIONS,
    Net,
    Record,
    collectives,
    difference,
    fused,
    mean_loss,
    net,
    repeat,
    train,
    watched,
)

PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": torch.float32},
    "bf16-split": {"dtype": torch.bfloat16, "master_weights": "split"},
    "bf16-fp32": {"dtype": torch.bfloat16, "master_weights": "fp32"},
    "bf16-kahan": {"dtype": torch.bfloat16, "master_weights": "kahan"},
}
"""The parameters' dtype and options of the optimizer."""


def sharded(kind: str, model: Net) -> Net:
    """The model, spread over all ranks in one of several ways."""
    world, device = dist.get_world_size(), next(model.parameters()).device.type
    policy: dict[str, Any] = {}
    if kind == "hybrid":
        policy["mesh"] = init_device_mesh(device, (2, world // 2), mesh_dim_names=("replicas", "shards"))
    elif kind == "tensor parallel":
        mesh = init_device_mesh(device, (world // 2, 2), mesh_dim_names=("data", "tensor"))
        plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        parallelize_module(model, mesh["tensor"], plan)
        policy["mesh"] = mesh["data"]
    else:
        policy["mesh"] = init_device_mesh(device, (world,))
    if kind == "mixed precision":
        policy["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    if kind == "second dimension":
        policy["shard_placement_fn"] = lambda p: Shard(1) if p.shape[-1] % world == 0 and p.ndim > 1 else None
    for layer in (model.up, model.down):
        fully_shard(layer, **policy)
    return fully_shard(model, **policy)


def backward(model: nn.Module, kind: str) -> Any:
    rank = dist.get_rank() // 2 if kind == "tensor parallel" else dist.get_rank()
    passes = 3 if kind == "accumulation" else 1

    def of_step(t: int) -> None:
        for k in range(passes):
            model.set_requires_gradient_sync(k == passes - 1)
            mean_loss(model, passes * t + k, rank).backward()

    return of_step


def fsdp(kind: str, dtype: torch.dtype, options: dict[str, Any]) -> Record:
    model = sharded(kind, net(dtype))
    optimizer = FusedRAdam(model.parameters(), **{**OPTIONS, **options})
    record = train(model, optimizer, backward(model, kind))
    for p in model.parameters():
        kept = {name: value for name, value in optimizer.state[p].items() if name != "step"}
        assert {"exp_avg", "exp_avg_sq"} <= kept.keys()
        assert len(kept) == 2 + ("master_weights" in options)
        for value in kept.values():
            assert isinstance(value, DTensor)
            assert value.placements == p.placements
            assert value.device_mesh == p.device_mesh
            assert value.to_local().shape == p.to_local().shape
            assert value.shape == p.shape
    return record


KINDS = ("one mesh", "second dimension", "mixed precision", "accumulation", "hybrid", "tensor parallel")


@pytest.mark.sampled
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", [2, 4])
def test_as_one_process(world: int, kind: str, precision: str, ranks: Ranks) -> None:
    options = dict(PRECISIONS[precision])
    dtype = options.pop("dtype")
    records = ranks.run(world, fsdp, kind, dtype, options)
    for record in records:
        assert difference(record, repeat(records[0], **options)) is None
        assert fused(record.ops) == ["radam_fused::step_native"]
        assert collectives(record.ops) == []


def test_another_gradient_is_noticed(ranks: Ranks) -> None:
    """The negative control: one element of one gradient of one step."""
    record = ranks.run(2, fsdp, "one mesh", torch.float32, {})[0]
    record.grads[3][2].view(-1)[5] *= 1.001
    assert difference(record, repeat(record)) == "parameter 2"


def shares_of() -> tuple[Record, list[int]]:
    """And how many elements of each parameter this rank has."""
    model = sharded("one mesh", net())
    optimizer = FusedRAdam(model.parameters(), **OPTIONS)
    record = train(model, optimizer, backward(model, "one mesh"))
    return record, [p.to_local().numel() for p in model.parameters()]


def test_uneven_and_empty_shards(ranks: Ranks) -> None:
    results = ranks.run(4, shares_of)
    sizes = [sizes for _, sizes in results]
    assert [each.count(0) for each in sizes] == [0, 1, 1, 5]
    for record, _ in results:
        assert difference(record, repeat(results[0][0])) is None


def adamw() -> list[str]:
    model = sharded("one mesh", net())
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    return train(model, optimizer, backward(model, "one mesh")).ops


def test_torch_goes_through_dtensors(ranks: Ranks) -> None:
    """The control of what `fused` sees."""
    assert "aten::_fused_adamw_ of DTensors" in fused(ranks.run(2, adamw)[0])


def first_steps(kind: str, dtype: torch.dtype, options: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The operators of a first step, which makes the state: ours, and torch's."""
    seen = []
    for make in (lambda p: FusedRAdam(p, **options), lambda p: torch.optim.AdamW(p, fused=True)):
        model = sharded(kind, net(dtype))
        optimizer = make(model.parameters())
        backward(model, kind)(0)
        with watched() as ops:
            optimizer.step()
        seen.append(ops)
    return seen[0], seen[1]


@pytest.mark.sampled
@pytest.mark.parametrize("precision", ["fp32", "bf16-split"])
@pytest.mark.parametrize("kind", KINDS)
def test_state_is_made_without_an_operator_on_dtensors(kind: str, precision: str, ranks: Ranks) -> None:
    options = dict(PRECISIONS[precision])
    for ours, theirs in ranks.run(4, first_steps, kind, options.pop("dtype"), options):
        assert [op for op in ours if op.endswith("DTensors")] == []
        assert fused(ours) == ["radam_fused::step_native"]
        assert collectives(ours) == []
        assert "aten::zeros_like of DTensors" in theirs  # the negative control
