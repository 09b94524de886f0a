"""What a step costs the host under FSDP2, beside torch's fused AdamW on the same model, in one run."""

from __future__ import annotations

import statistics
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from radam_fused import FusedRAdam
from tests.distributed.ranks import Ranks

LAYERS, ROUNDS = 48, 15


def model() -> nn.Module:
    layers = nn.Sequential(*(nn.Linear(16, 16) for _ in range(LAYERS)))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(layers, mesh=mesh)


def times() -> tuple[float, float]:
    """Median seconds of a step: ours, and torch's; the two take turns."""
    ours, theirs = model(), model()
    pairs = [(ours, FusedRAdam(ours.parameters())), (theirs, torch.optim.AdamW(theirs.parameters(), fused=True))]
    found: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for (net, optimizer), mine in zip(pairs, found, strict=True):
            optimizer.zero_grad()
            net(torch.ones(2, 16)).sum().backward()
            began = time.perf_counter()
            optimizer.step()
            mine.append(time.perf_counter() - began)
    return statistics.median(found[0][3:]), statistics.median(found[1][3:])


def test_no_slower_than_fused_adamw(ranks: Ranks) -> None:
    """Some ten times faster in fact (docs/scale.md), so that a busy machine does not matter."""
    for ours, theirs in ranks.run(2, times):
        assert ours < theirs
