"""Stepping in backward where gradients are averaged over ranks later: an error, before a step with one rank's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from radam_fused import FusedRAdam, step_in_backward
from tests.distributed.ranks import Failed, Ranks
from tests.support.helpers import same_bits

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "unused": {"find_unused_parameters": True},  # as Transformers' Trainer has it
    "static": {"static_graph": True},
    "views": {"gradient_as_bucket_view": True},
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))


def step(options: dict[str, Any] | None, before: bool) -> bool:
    """A step on a rank's own data; whether the weights are those of all ranks. Without options there is no wrapper."""
    model = net()
    optimizer = FusedRAdam(model.parameters(), lr=0.1)
    if before:
        step_in_backward(optimizer)
    wrapped = model if options is None else DistributedDataParallel(model, **options)
    if not before:
        step_in_backward(optimizer)
    begun = [p.detach().clone() for p in model.parameters()]
    try:
        wrapped(torch.full((2, 8), 1.0 + dist.get_rank())).square().sum().backward()
    except RuntimeError:
        assert all(map(same_bits, begun, (p.detach() for p in model.parameters())))
        raise
    optimizer.step()
    first: list[Tensor] = [torch.zeros_like(p) for p in begun]
    for mine, theirs in zip(model.parameters(), first, strict=True):
        theirs.copy_(mine.detach())
        dist.broadcast(theirs, 0)
    return all(map(same_bits, (p.detach() for p in model.parameters()), first))


@pytest.mark.parametrize("before", [True, False], ids=["before it is wrapped", "after"])
@pytest.mark.parametrize("way", WAYS)
def test_data_parallel_is_refused_before_a_step(way: str, before: bool, ranks: Ranks) -> None:
    for outcome in ranks.outcomes(2, step, WAYS[way], before):
        assert isinstance(outcome, Failed)
        assert "in a DistributedDataParallel module" in outcome.message


def test_without_a_wrapper_ranks_go_their_own_ways(ranks: Ranks) -> None:
    """The negative control: it is allowed, and the ranks' weights differ."""
    assert ranks.run(2, step, None, True) == [True, False]


def flat() -> None:
    step_in_backward(FusedRAdam(FullyShardedDataParallel(net(), device_id=torch.device("cpu")).parameters()))


def test_flat_parameters_of_fsdp1_are_refused(ranks: Ranks) -> None:
    for outcome in ranks.outcomes(2, flat):
        assert isinstance(outcome, Failed)
        assert "use_orig_params=True or fully_shard" in outcome.message
