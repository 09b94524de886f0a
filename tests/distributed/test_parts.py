"""``max_grad_norm`` where plain parameters are parts of others: right, or an error with the tool's way to clip."""

from __future__ import annotations

import sys
import types

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.nn.parallel import DistributedDataParallel

from radam_fused import FusedRAdam
from tests.distributed.ranks import Ranks
from tests.distributed.training import OPTIONS, mean_loss, net
from tests.support.rank_errors import errors, meet

CLIP = {**OPTIONS, "max_grad_norm": 0.05}


def fsdp1(strategy: str, originals: bool, given: bool, steps: int = 2) -> list[float]:
    """The norms of some steps."""
    meet()
    model = FullyShardedDataParallel(
        net(), sharding_strategy=ShardingStrategy[strategy], use_orig_params=originals, device_id=torch.device("cpu")
    )
    optimizer = FusedRAdam(model.parameters(), **CLIP)
    if given:
        optimizer.grad_norm_group = dist.group.WORLD
    norms = []
    for t in range(steps):
        optimizer.zero_grad()
        mean_loss(model, t).backward()
        optimizer.step()
        assert optimizer.last_grad_norm is not None
        norms.append(float(optimizer.last_grad_norm))
    return norms


def alone(steps: int = 2) -> list[float]:
    """What `fsdp1` has to find: DistributedDataParallel's norms."""
    model = DistributedDataParallel(net())
    optimizer = FusedRAdam(model.parameters(), **CLIP)
    norms = []
    for t in range(steps):
        optimizer.zero_grad()
        mean_loss(model, t).backward()
        optimizer.step()
        assert optimizer.last_grad_norm is not None
        norms.append(float(optimizer.last_grad_norm))
    return norms


@pytest.mark.parametrize("originals", [False, True], ids=["flat", "use_orig_params"])
@pytest.mark.parametrize("strategy", ["FULL_SHARD", "SHARD_GRAD_OP"])
def test_fsdp1_is_an_error(strategy: str, originals: bool, ranks: Ranks) -> None:
    for message in errors(ranks.outcomes(2, fsdp1, strategy, originals, False)):
        assert "FSDP1" in message
        assert "model.clip_grad_norm_" in message
        assert "grad_norm_group" in message


@pytest.mark.parametrize("originals", [False, True], ids=["flat", "use_orig_params"])
def test_fsdp1_with_its_group_is_right(originals: bool, ranks: Ranks) -> None:
    expected = ranks.run(2, alone)[0]
    for norms in ranks.run(2, fsdp1, "FULL_SHARD", originals, True):
        assert norms == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("originals", [False, True], ids=["flat", "use_orig_params"])
def test_fsdp1_that_shards_nothing_is_right(originals: bool, ranks: Ranks) -> None:
    """The negative control: its parameters carry the same mark."""
    expected = ranks.run(2, alone)[0]
    for norms in ranks.run(2, fsdp1, "NO_SHARD", originals, False):
        assert norms == pytest.approx(expected, rel=1e-6)


# Tools that are not installed here: their marks, as their sources set them.


def marked(kind: str, *, flat: bool) -> list[nn.Parameter]:
    weight = nn.Parameter(torch.ones(12) if flat else torch.ones(3, 4))
    bias = nn.Parameter(torch.ones(3))
    for p in (weight, bias):
        if kind == "deepspeed zero3":
            p.ds_id, p.ds_status, p.ds_tensor = 0, 1, None
        elif kind == "fairscale fsdp":
            p._is_sharded, p._orig_size = True, p.shape
        elif kind == "deepspeed experts":
            p.allreduce, p.group_name = False, "ep_size_2"
        elif kind == "megatron experts":
            p.allreduce = False
        elif kind == "megatron":
            p.tensor_model_parallel, p.partition_dim, p.partition_stride = True, 0, 1
        elif kind == "one rank's experts":
            p.allreduce, p.group_name = False, "ep_size_1"
        elif kind == "whole fairscale":
            p._is_sharded, p._orig_size = False, p.shape
        elif kind == "whole megatron":
            p.tensor_model_parallel, p.partition_dim, p.partition_stride = False, -1, 1
    return [weight, bias]


def stepped(kind: str, flat: bool, tensor_parallel: int | None, given: bool, max_grad_norm: float | None) -> bool:
    meet()
    if tensor_parallel is not None:
        module = types.ModuleType("megatron.core.parallel_state")
        module.get_tensor_model_parallel_world_size = lambda: tensor_parallel  # type: ignore[attr-defined]
        sys.modules[module.__name__] = module
    try:
        params = marked(kind, flat=flat)
        optimizer = FusedRAdam(params, max_grad_norm=max_grad_norm)
        if given:
            optimizer.grad_norm_group = dist.group.WORLD
        for p in params:
            p.grad = torch.ones_like(p)
        before = [p.detach().clone() for p in params]
        try:
            optimizer.step()
        finally:
            moved = not all(map(torch.equal, params, before))
        return moved
    finally:
        sys.modules.pop("megatron.core.parallel_state", None)


PARTS = {
    "deepspeed zero3": (False, None, "gradient_clipping"),
    "fairscale fsdp": (True, None, "model.clip_grad_norm_"),
    "deepspeed experts": (False, None, "gradient_clipping"),
    "megatron experts": (False, None, "--clip-grad"),
    "megatron": (False, 2, "--clip-grad"),
}


@pytest.mark.parametrize("kind", PARTS)
def test_marked_parts_are_errors(kind: str, ranks: Ranks) -> None:
    flat, size, way = PARTS[kind]
    for message in errors(ranks.outcomes(2, stepped, kind, flat, size, False, 1.0)):
        assert "param_groups[0]['params'][0]" in message
        assert way in message
        assert "grad_norm_group" in message
    # With the group, without clipping, or in one process there is nothing wrong.
    assert ranks.run(2, stepped, kind, flat, size, True, 1.0) == [True, True]
    assert ranks.run(2, stepped, kind, flat, size, False, None) == [True, True]
    assert ranks.run(1, stepped, kind, flat, size, False, 1.0) == [True]


def test_flat_shards_of_megatrons_distributed_optimizer_are_errors(ranks: Ranks) -> None:
    """Without tensor parallelism its marks alone say nothing; a weight of one dimension does."""
    assert all(
        "--clip-grad" in message for message in errors(ranks.outcomes(2, stepped, "megatron", True, 1, False, 1.0))
    )
    assert ranks.run(2, stepped, "megatron", False, 1, False, 1.0) == [True, True]


@pytest.mark.parametrize("kind", ["plain", "one rank's experts", "whole fairscale", "whole megatron"])
@pytest.mark.filterwarnings("error")
def test_whole_parameters_are_taken_for_whole(kind: str, ranks: Ranks) -> None:
    """The negative control; flat ones too, where they have been so from the start."""
    assert ranks.run(2, stepped, kind, False, 2, False, 1.0) == [True, True]
    assert ranks.run(2, stepped, kind, True, 2, False, 1.0) == [True, True]


# Tools that put flat shards into the groups after the optimizer was made: DeepSpeed's ZeRO 1 and 2, Megatron-LM.


def replaced(shape: tuple[int, ...], after: int, given: bool) -> list[float]:
    meet()
    p = nn.Parameter(torch.ones(4, 6))
    optimizer = FusedRAdam([p], max_grad_norm=1.0)
    if given:
        optimizer.grad_norm_group = dist.group.WORLD
    for _ in range(after):
        p.grad = torch.ones_like(p)
        optimizer.step()
    shard = torch.ones(shape, requires_grad=True)
    optimizer.param_groups[0]["params"] = [shard]
    optimizer.state.clear()
    norms = []
    for _ in range(2):
        shard.grad = torch.ones_like(shard)
        optimizer.step()
        assert optimizer.last_grad_norm is not None
        norms.append(float(optimizer.last_grad_norm))
    return norms


@pytest.mark.parametrize("after", [0, 2], ids=lambda n: f"after_{n}_steps")
def test_flat_shards_in_the_place_of_parameters_are_errors(after: int, ranks: Ranks) -> None:
    for message in errors(ranks.outcomes(2, replaced, (12,), after, False)):
        assert "replaced by flat parameters" in message
        assert "DeepSpeed" in message
    assert ranks.run(2, replaced, (12,), after, True) == [[24.0**0.5] * 2] * 2
    assert ranks.run(2, replaced, (3, 4), after, False) == [[12.0**0.5] * 2] * 2  # other parameters, but not flat
    assert ranks.run(1, replaced, (12,), after, False) == [[12.0**0.5] * 2]
