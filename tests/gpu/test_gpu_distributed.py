"""FSDP2, DistributedDataParallel and checkpoints over NCCL, on one, two or four GPUs: the bits of one process.

One GPU is a world of its own, in which meshes have one dimension. `tests/distributed/test_gpu_checks.py` runs the same
checks with gloo on the CPU, so that it is not on a borrowed machine that their own errors show.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from radam_fused import FusedRAdam
from tests.distributed.test_fsdp import KINDS, PRECISIONS, backward, sharded
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
from tests.examples.test_pretrain import pretrain
from tests.support.helpers import same_bits

LIMIT = 0.05
ON_ONE = ("one mesh", "mixed precision", "accumulation", "ddp", "ddp flatten")
ON_MORE = (*KINDS, "ddp", "ddp flatten")


def trained(kind: str, device: str, backend: str, precision: str, limits: dict[str, float]) -> tuple[Record, Record]:
    """A run, and its repetition in one process."""
    options = dict(PRECISIONS[precision])
    model: Any = net(options.pop("dtype")).to(device)
    wanted = {**OPTIONS, **options, **limits, "backend": backend, "flatten": kind == "ddp flatten"}
    if kind.startswith("ddp"):
        data = DistributedDataParallel(model, gradient_as_bucket_view=True)
        optimizer = FusedRAdam(model.parameters(), **wanted)
        record = train(model, optimizer, lambda t: mean_loss(data, t).backward())
    else:
        model = sharded(kind, model)
        optimizer = FusedRAdam(model.parameters(), **wanted)
        record = train(model, optimizer, backward(model, kind))
    return record, repeat(record, **options, **limits)


def check_training(device: str, backend: str, clip: bool) -> None:
    """Every way of spreading a model, in float32 and in bfloat16 with master weights."""
    several = dist.get_world_size() > 1
    limits = {"max_grad_norm": LIMIT} if clip else {}
    for kind in ON_MORE if several else ON_ONE:
        for precision in ("fp32", "bf16-split"):
            case = f"{kind}, {precision}"
            record, alone = trained(kind, device, backend, precision, limits)
            assert len(record.grads) == STEPS, case
            assert all(math.isclose(a, b, rel_tol=1e-14) for a, b in zip(record.norms, alone.norms, strict=True)), case
            assert len(record.norms) == (STEPS if clip else 0), case
            assert difference(record, alone) is None, case
            assert fused(record.ops)[-1] in ("radam_fused::step_native", "radam_fused::step_triton"), case
            one = clip and several and not kind.startswith("ddp")
            assert collectives(record.ops) == ["c10d::allreduce_"] * one, case
    record.grads[3][2].view(-1)[5] *= 1.01  # the negative control
    assert difference(record, repeat(record, master_weights="split", **limits)) is not None


def check_checkpoint(device: str, backend: str, folder: str) -> None:
    """Saved after four steps and loaded into another optimizer, which ends with the bits of the first."""
    options = {**OPTIONS, "backend": backend, "master_weights": "split"}
    runs = []
    for resumed in (False, True):
        model = sharded("one mesh", net(torch.bfloat16).to(device))
        optimizer = FusedRAdam(model.parameters(), **options)
        if not resumed:
            train(model, optimizer, backward(model, "one mesh"), range(4))
        weights, states = get_state_dict(model, optimizer)
        parts = {"model": weights, "optimizer": states}
        if resumed:
            fresh = [p.to_local().detach().clone() for p in model.parameters()]
            dcp.load(parts, checkpoint_id=folder)
            set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=states)
            held = [(p.to_local(), q) for p, q in zip(model.parameters(), fresh, strict=True) if q.numel()]
            assert not any(same_bits(p, q) for p, q in held)  # the negative control
        else:
            dcp.save(parts, checkpoint_id=folder)
        runs.append(train(model, optimizer, backward(model, "one mesh"), range(4, STEPS)))
    assert difference(*runs) is None


def check_disagreement(device: str, backend: str) -> None:
    """A gradient that does not fit on rank 0: it raises there, no rank steps, and none waits for it."""
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    first, second = (nn.Parameter(distribute_tensor(torch.ones(8, 3, device=device), mesh, [Shard(0)])) for _ in "ab")
    optimizer = FusedRAdam([("first", first), ("second", second)], backend=backend, max_grad_norm=1.0)
    for wrong in (False, True, False):
        before = [p.to_local().detach().clone() for p in (first, second)]
        for p in (first, second):
            p.grad = distribute_tensor(torch.ones(8, 3, device=device), mesh, [Shard(0)])
        if wrong and dist.get_rank() == 0:
            second.grad = torch.ones(8, 3, device=device)
        error = None
        try:
            optimizer.step()
        except (TypeError, RuntimeError) as raised:
            error = raised
        assert all(same_bits(p.to_local(), q) for p, q in zip((first, second), before, strict=True)) == wrong
        if wrong and dist.get_rank() == 0:
            assert "gradient of parameter 'second' is a Tensor" in str(error)
        else:  # the host of a GPU does not look: the others skip the step, and only on the CPU do they raise as well
            assert (error is not None) == (wrong and device == "cpu")


def world() -> int:
    """One, two or four GPUs."""
    return max(n for n in (1, 2, 4) if n <= torch.cuda.device_count())


def work(rank: int, size: int, folder: Path, backend: str) -> None:
    """One rank, which takes seconds to start, so all checks in one; an assertion that fails here fails the test."""
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=size)
    try:
        for clip in (False, True):
            check_training("cuda", backend, clip)
        check_checkpoint("cuda", backend, str(folder / "saved"))
        check_disagreement("cuda", backend)
    finally:
        dist.destroy_process_group()


def test_over_nccl(backend: str, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (world(), tmp_path, backend), world())


def test_pretraining(tmp_path: Path) -> None:
    """examples/pretrain.py by torchrun: the losses of the CPU, and a run that goes on from its checkpoint."""
    _, there = pretrain(tmp_path / "cpu", 1, 40)
    first, here = pretrain(tmp_path / "gpu", world(), 40, "cuda")
    assert first.endswith(f"on {world()} processes (cuda), from step 0")
    assert here[20] == pytest.approx(there[20], abs=0.05)
    assert here[40] < here[20] < 5.4
    for folder in sorted((tmp_path / "gpu").glob("step-*"))[-2:]:  # as if it had been stopped after step 20
        (folder / ".metadata").unlink()
    first, resumed = pretrain(tmp_path / "gpu", world(), 40, "cuda")
    assert first.endswith("from step 20")
    assert resumed == {40: pytest.approx(here[40], abs=1e-3)}
