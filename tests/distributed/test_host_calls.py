"""What a step costs the host under FSDP2, beside torch's fused AdamW, in function calls, which no load changes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from radam_fused import FusedRAdam
from tests.distributed.ranks import Ranks

LAYERS, WARM = 48, 3


def model() -> nn.Module:
    layers = nn.Sequential(*(nn.Linear(16, 16) for _ in range(LAYERS)))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(layers, mesh=mesh)


def calls(step: Callable[[], object]) -> int:
    """How many functions a step calls, in Python and in C."""
    found = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal found
        found += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(before)
    return found


def calls_of_both() -> tuple[int, int]:
    """Calls of a step: ours, and torch's."""
    ours, theirs = model(), model()
    pairs = [(ours, FusedRAdam(ours.parameters())), (theirs, torch.optim.AdamW(theirs.parameters(), fused=True))]
    found = []
    for net, optimizer in pairs:
        for _ in range(WARM):
            optimizer.zero_grad()
            net(torch.ones(2, 16)).sum().backward()
            optimizer.step()
        found.append(calls(optimizer.step))
    return found[0], found[1]


def test_a_tenth_of_the_calls_of_fused_adamw(ranks: Ranks) -> None:
    """Their seconds are in docs/scale.md: some ten times faster."""
    for ours, theirs in ranks.run(2, calls_of_both):
        assert 10 * ours < theirs
