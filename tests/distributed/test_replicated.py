"""DistributedDataParallel and ZeroRedundancyOptimizer: bit for bit a single process's run on the averaged gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from radam_fused import FusedRAdam
from tests.distributed.ranks import Ranks
from tests.distributed.test_fsdp import PRECISIONS
from tests.distributed.training import (
    OPTIONS,
    STEPS,
    Record,
    collectives,
    difference,
    fused,
    mean_loss,
    net,
    repeat,
    train,
)

flattened = pytest.mark.parametrize("flatten", [False, True], ids=["apart", "flatten"])


def ddp(precision: str, flatten: bool, settings: dict[str, Any], before: bool = False) -> Record:
    options = dict(PRECISIONS[precision])
    model = net(options.pop("dtype"))
    options |= {**OPTIONS, "flatten": flatten}
    if before:  # the optimizer first, then the wrapper
        optimizer = FusedRAdam(model.parameters(), **options)
        data = DistributedDataParallel(model, **settings)
    else:
        data = DistributedDataParallel(model, **settings)
        optimizer = FusedRAdam(model.parameters(), **options)

    def backward(t: int) -> None:
        if settings.get("static_graph"):
            return mean_loss(data, t).backward()
        with data.no_sync():
            mean_loss(data, 2 * t).backward()
        mean_loss(data, 2 * t + 1).backward()

    return train(model, optimizer, backward)


@pytest.mark.sampled
@pytest.mark.parametrize("precision", PRECISIONS)
@flattened
@pytest.mark.parametrize("bucket_view", [False, True], ids=["", "bucket_view"])
@pytest.mark.parametrize("static", [False, True], ids=["", "static_graph"])
def test_ddp(static: bool, bucket_view: bool, flatten: bool, precision: str, ranks: Ranks) -> None:
    settings = {"gradient_as_bucket_view": bucket_view, "static_graph": static}
    records = ranks.run(2, ddp, precision, flatten, settings)
    options = {key: value for key, value in PRECISIONS[precision].items() if key != "dtype"}
    for record in records:
        assert len(record.grads) == STEPS
        assert difference(record, repeat(records[0], **options)) is None
        assert fused(record.ops) == ["radam_fused::step_native"]
        assert collectives(record.ops) == []


@flattened
def test_ddp_around_a_model_that_has_an_optimizer(flatten: bool, ranks: Ranks) -> None:
    for record in ranks.run(2, ddp, "fp32", flatten, {"gradient_as_bucket_view": True}, True):
        assert difference(record, repeat(record)) is None


def test_another_gradient_is_noticed(ranks: Ranks) -> None:
    """The negative control."""
    record = ranks.run(2, ddp, "fp32", False, {})[0]
    record.grads[3][2].view(-1)[5] *= 1.001
    assert difference(record, repeat(record)) == "parameter 2"


def shared_out(precision: str, bucket_view: bool) -> tuple[Record, list[int], list[str]]:
    """A run, and which of the parameters have their state on this rank."""
    options = dict(PRECISIONS[precision])
    model = net(options.pop("dtype"))
    data = DistributedDataParallel(model)
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(), FusedRAdam, parameters_as_bucket_view=bucket_view, **OPTIONS, **options
    )
    record = train(model, optimizer, lambda t: mean_loss(data, t).backward())
    record.states = [dict(optimizer.optim.state.get(p, {})) for p in model.parameters()]
    return record, [k for k, p in enumerate(model.parameters()) if optimizer.optim.state.get(p)], record.ops


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bucket_view", [False, True], ids=["", "bucket_view"])
def test_zero_redundancy_optimizer(bucket_view: bool, precision: str, ranks: Ranks) -> None:
    results = ranks.run(3, shared_out, precision, bucket_view)
    options = {key: value for key, value in PRECISIONS[precision].items() if key != "dtype"}
    alone = repeat(results[0][0], **options)
    held = [k for _, own, _ in results for k in own]
    assert sorted(held) == list(range(len(alone.last)))  # each on one rank
    for record, own, ops in results:
        record.states = [record.states[k] if k in own else alone.states[k] for k in range(len(alone.last))]
        assert difference(record, alone) is None
        assert fused(ops) == ["radam_fused::step_native"]


def consolidated() -> tuple[bool, bool]:
    """Saved on one rank, loaded on each, and trained on: as never interrupted? And with the weights alone?"""
    model, again, forgetful = net(), net(), net()
    optimizers = []
    for each in (model, again, forgetful):
        optimizers.append(ZeroRedundancyOptimizer(each.parameters(), FusedRAdam, **OPTIONS))
    whole, resumed, fresh = optimizers
    train(model, whole, lambda t: mean_loss(model, t, 0).backward(), range(4))
    for each in (again, forgetful):
        each.load_state_dict(model.state_dict())
    whole.consolidate_state_dict(to=0)
    received = [whole.state_dict() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(received, src=0)
    resumed.load_state_dict(copy.deepcopy(received[0]))  # on rank 0 these are the very tensors that go on changing
    for each, optimizer in ((model, whole), (again, resumed), (forgetful, fresh)):
        train(each, optimizer, lambda t, each=each: mean_loss(each, t, 0).backward(), range(4, STEPS))
    same = [all(map(torch.equal, model.parameters(), other.parameters())) for other in (again, forgetful)]
    return same[0], same[1]


def test_zero_redundancy_optimizer_resumes(ranks: Ranks) -> None:
    assert ranks.run(2, consolidated) == [(True, False)] * 2
