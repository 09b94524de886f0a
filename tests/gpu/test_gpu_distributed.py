"""FSDP2 over NCCL, on as many GPUs as there are, up to four: DTensor parameters and the norm over ranks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from radam_fused import FusedRAdam
from tests.distributed.training import OPTIONS, collectives, difference, fused, mean_loss, net, repeat, train

LIMIT = 0.05


def work(rank: int, world: int, folder: Path, backend: str, device: str, clip: bool) -> None:
    """One rank; an assertion that fails here fails the test."""
    if device == "cuda":
        torch.cuda.set_device(rank)
    library = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(library, init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world)
    try:
        mesh = init_device_mesh(device, (world,))
        model = net().to(device)
        for layer in (model.up, model.down, model):
            fully_shard(layer, mesh=mesh)
        limits = {"max_grad_norm": LIMIT} if clip else {}
        optimizer = FusedRAdam(model.parameters(), backend=backend, **OPTIONS, **limits)
        record = train(model, optimizer, lambda t: mean_loss(model, t).backward())
        alone = repeat(record, **limits)
        assert all(math.isclose(a, b, rel_tol=1e-14) for a, b in zip(record.norms, alone.norms, strict=True))
        assert len(record.norms) == (len(record.grads) if clip else 0)
        assert difference(record, alone) is None
        assert fused(record.ops)[-1] in ("radam_fused::step_native", "radam_fused::step_triton")
        assert collectives(record.ops) == (["c10d::allreduce_"] if clip and world > 1 else [])
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("clip", [False, True], ids=["", "max_grad_norm"])
def test_fsdp(clip: bool, backend: str, tmp_path: Path) -> None:
    world = min(torch.cuda.device_count(), 4)
    torch.multiprocessing.spawn(work, (world, tmp_path, backend, "cuda", clip), world)
