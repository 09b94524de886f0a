"""Tensor parallel by itself, and what else DTensors may be: gradients that are pending sums, complex, offloaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

from radam_fused import FusedRAdam, step_in_backward
from tests.distributed.ranks import Failed, Ranks
from tests.distributed.test_fsdp import backward, sharded
from tests.distributed.training import OPTIONS, Record, batch, collectives, difference, fused, net, repeat, train, whole


def tensor_parallel() -> tuple[Record, list[Any]]:
    """The norm runs on parts of the sequence, so that the gradients of its parameters are sums over ranks."""
    model = net()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    plan = {
        "norm": SequenceParallel(sequence_dim=0),
        "up": ColwiseParallel(input_layouts=Shard(0)),
        "down": RowwiseParallel(),
    }
    parallelize_module(model, mesh, plan)
    optimizer = FusedRAdam(model.parameters(), **OPTIONS)
    seen: list[Any] = []

    def of_step(t: int) -> None:
        x = distribute_tensor(batch(t)[:4], mesh, [Shard(0)])
        model(x).square().mean().backward()
        seen.append(model.norm.weight.grad.placements)

    return train(model, optimizer, of_step), seen


def test_pending_sums_are_reduced(ranks: Ranks) -> None:
    """As torch.optim does; it is the backward pass's own sum that is finished, so it is not among the step's."""
    results = ranks.run(2, tensor_parallel)
    alone = repeat(results[0][0])
    for record, seen in results:
        assert {type(placement) for (placement,) in seen} == {Partial}
        assert difference(record, alone) is None
        assert fused(record.ops)[-1] == "radam_fused::step_native"
        assert len(collectives(record.ops)) == 2  # of the norm's weight and bias


def zeroed() -> tuple[bool, list[float]]:
    """``zero_grads`` leaves zeros in what ``p.grad`` is after the step."""
    mesh = init_device_mesh("cpu", (2,))
    p = nn.Parameter(distribute_tensor(torch.zeros(4), mesh, [Replicate()]))
    p.grad = DTensor.from_local(torch.ones(4), mesh, [Partial()], run_check=False)
    optimizer = FusedRAdam([p], lr=1.0, zero_grads=True)
    optimizer.step()
    return bool(p.grad.to_local().any()), p.to_local().tolist()


def test_zero_grads(ranks: Ranks) -> None:
    assert ranks.run(2, zeroed) == [(False, [-2.0] * 4)] * 2  # the first step is lr times the sum of both ranks


def complex_numbers() -> bool:
    mesh = init_device_mesh("cpu", (2,))
    value = torch.randn(5, 3, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    p, q = nn.Parameter(distribute_tensor(value, mesh, [Shard(0)])), nn.Parameter(value.clone())
    optimizers = [FusedRAdam([each], **OPTIONS) for each in (p, q)]
    for t in range(8):
        q.grad = value * (t + 1j)
        p.grad = distribute_tensor(q.grad, mesh, [Shard(0)])
        for optimizer in optimizers:
            optimizer.step()
    states = [optimizer.state[each]["exp_avg"] for optimizer, each in zip(optimizers, (p, q), strict=True)]
    return torch.equal(whole(p), q) and torch.equal(whole(states[0]), states[1]) and not torch.equal(q, value)


def test_complex(ranks: Ranks) -> None:
    assert ranks.run(2, complex_numbers) == [True, True]


def offloaded(how: str) -> Record:
    if how == "FSDP2's":
        model = net()
        mesh = init_device_mesh("cpu", (2,))
        for layer in (model.up, model.down, model):
            fully_shard(layer, mesh=mesh, offload_policy=CPUOffloadPolicy(pin_memory=False))
    else:
        model = sharded("one mesh", net())
    optimizer = FusedRAdam(model.parameters(), **OPTIONS, offload=how != "FSDP2's")
    return train(model, optimizer, backward(model, "one mesh"))


@pytest.mark.parametrize("how", ["FSDP2's", "ours"])
def test_offload(how: str, ranks: Ranks) -> None:
    for record in ranks.run(2, offloaded, how):
        assert difference(record, repeat(record)) is None
        assert fused(record.ops) == ["radam_fused::step_native"]


def in_backward() -> tuple[Record, Record, int]:
    """FSDP2 calls the hooks of a parameter when its part of the gradient is there."""
    records, left = [], 0
    for early in (False, True):
        model = sharded("one mesh", net())
        optimizer = FusedRAdam(model.parameters(), **OPTIONS)
        if early:
            step_in_backward(optimizer)
        records.append(train(model, optimizer, backward(model, "one mesh")))
        left = sum(grad is not None for grads in records[-1].grads for grad in grads)
    return records[0], records[1], left


def test_step_in_backward(ranks: Ranks) -> None:
    for late, early, left in ranks.run(2, in_backward):
        assert left == 0
        assert difference(early, late) is None


def compiled() -> None:
    model = sharded("one mesh", net())
    optimizer = FusedRAdam(model.parameters(), **OPTIONS)
    backward(model, "one mesh")(0)
    torch.compile(optimizer.step, backend="eager")()


def test_compile_is_refused(ranks: Ranks) -> None:
    for outcome in ranks.outcomes(2, compiled):
        assert isinstance(outcome, Failed)
        assert "DTensor parameters under torch.compile" in outcome.message


def scaled() -> tuple[list[float], list[float]]:
    """GradScaler finds an infinity on one rank, in a step that all of them then skip."""
    model = sharded("one mesh", net())
    optimizer = FusedRAdam(model.parameters(), **OPTIONS)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    scales, first = [], []
    for t in range(8):
        optimizer.zero_grad()
        loss = model(batch(t, dist.get_rank())).square().mean()
        scaler.scale(loss).backward()
        if t == 3 and dist.get_rank() == 1:
            model.up.weight.grad.to_local()[0, 0] = float("inf")
        before, scale = model.up.weight.grad.to_local().clone(), scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(model.up.weight.grad.to_local(), before / scale)  # left unscaled
        scales.append(scaler.get_scale())
        first.append(float(optimizer.state[model.up.weight]["step"]))
    return scales, first


def test_grad_scaler(ranks: Ranks) -> None:
    for scales, counts in ranks.run(2, scaled):
        assert scales == [4.0] * 3 + [2.0] * 5
        assert counts == [1.0, 2.0, 3.0, 3.0, 4.0, 5.0, 6.0, 7.0]
