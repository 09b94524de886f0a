"""``max_grad_norm`` over ranks: the norm of the whole model, by one all-reduce of one number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from radam_fused import FusedRAdam
from tests.distributed.ranks import Failed, Ranks
from tests.distributed.test_fsdp import KINDS, PRECISIONS, backward, sharded
from tests.distributed.training import (
    OPTIONS,
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

CLIP = {**OPTIONS, "max_grad_norm": 0.05}
"""Well below every norm here, so that each step is clipped."""


def clipped(kind: str, dtype: torch.dtype, options: dict[str, Any]) -> tuple[Record, list[float]]:
    """A run, and what torch finds for the norm."""
    model = sharded(kind, net(dtype))
    optimizer = FusedRAdam(model.parameters(), **CLIP, **options)
    theirs: list[float] = []

    def measure(_: int) -> None:
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters()])
        theirs.append(float(norm.full_tensor() if isinstance(norm, DTensor) else norm))

    # torch itself refuses norms over several meshes, and rounds those of bfloat16 gradients.
    can = kind != "tensor parallel" and dtype == torch.float32
    return train(model, optimizer, backward(model, kind), edit=measure if can else None), theirs


@pytest.mark.sampled
@pytest.mark.parametrize("precision", ["fp32", "bf16-split"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_norm_of_the_whole_model(kind: str, precision: str, ranks: Ranks) -> None:
    options = dict(PRECISIONS[precision])
    results = ranks.run(4, clipped, kind, options.pop("dtype"), options)
    alone = repeat(results[0][0], max_grad_norm=CLIP["max_grad_norm"], **options)
    # The negative control: a norm that is off by a thousandth shows in the bits.
    off = repeat(results[0][0], max_grad_norm=1.001 * CLIP["max_grad_norm"], **options)
    assert difference(results[0][0], off) is not None
    for rank, (record, theirs) in enumerate(results):
        assert record.norms == pytest.approx(alone.norms, rel=1e-14)
        assert record.norms == results[0][0].norms  # of one all-reduce, so bit for bit the same on every rank
        assert min(record.norms) > 2 * CLIP["max_grad_norm"]
        if theirs:
            assert record.norms == pytest.approx(theirs, rel=1e-6)
        assert difference(record, results[0][0]) is None
        assert difference(record, alone) is None
        assert collectives(record.ops) == ["c10d::allreduce_"]
        operators = [f"radam_fused::{op}_native" for op in ("grad_norm", "scalars", "step")]
        counts = kind != "hybrid" or rank < 2  # the second replica's are the first's
        assert fused(record.ops) == operators[not counts :]


@pytest.mark.parametrize("kind", KINDS)
def test_one_number(kind: str, ranks: Ranks) -> None:
    """The all-reduce carries one float64."""
    assert ranks.run(4, sizes_of_all_reduces, kind) == [[(1, torch.float64)]] * 4


def sizes_of_all_reduces(kind: str) -> list[tuple[int, torch.dtype]]:
    model = sharded(kind, net())
    optimizer = FusedRAdam(model.parameters(), **CLIP)
    seen = []
    plain = dist.all_reduce

    def noting(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append((tensor.numel(), tensor.dtype))
        return plain(tensor, *args, **kwargs)

    backward(model, kind)(0)
    dist.all_reduce = noting
    try:
        optimizer.step()
    finally:
        dist.all_reduce = plain
    return seen


# Who counts what.


def mixed() -> tuple[float, float]:
    """Parameters split over both dimensions of a mesh, over one, over none, over a part of the mesh, and plain."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    values = [torch.arange(1.0, 13.0).reshape(4, 3) * k for k in range(1, 8)]
    places: list[Any] = [
        (mesh, (Shard(0), Shard(1))),
        (mesh, (Shard(0), Shard(0))),
        (mesh, (Replicate(), Shard(1))),
        (mesh, (Shard(0), Replicate())),
        (mesh, (Replicate(), Replicate())),
        (mesh["a"], (Shard(0),)),
        None,
    ]
    params = []
    for value, place in zip(values, places, strict=True):
        p = nn.Parameter(torch.zeros(4, 3) if place is None else distribute_tensor(torch.zeros(4, 3), *place))
        p.grad = value if place is None else distribute_tensor(value, *place)
        params.append(p)
    optimizer = FusedRAdam(params, **CLIP)
    for _ in range(3):  # the third takes plain parameters by their addresses
        optimizer.step()
    return float(optimizer.last_grad_norm), float(torch.cat(values).double().norm())


def test_every_element_counts_once(ranks: Ranks) -> None:
    for found, expected in ranks.run(4, mixed):
        assert found == pytest.approx(expected, rel=1e-14)


def stage() -> tuple[float, list[str]]:
    """A mesh of two dimensions on half of the ranks, as a pipeline's stage has it."""
    mesh = init_device_mesh("cpu", (2, 2, 1), mesh_dim_names=("stage", "shards", "copies"))
    own = mesh["shards", "copies"]
    p = nn.Parameter(distribute_tensor(torch.zeros(6), own, (Shard(0), Replicate())))
    optimizer = FusedRAdam([p], **CLIP)
    for _ in range(2):  # a group is made in the first
        value = torch.full((6,), 2.0 + mesh.get_coordinate()[0])
        p.grad = distribute_tensor(value, own, (Shard(0), Replicate()))
        with watched() as ops:
            optimizer.step()
    return float(optimizer.last_grad_norm), collectives(ops)


def test_a_mesh_of_its_own(ranks: Ranks) -> None:
    for rank, (norm, ops) in enumerate(ranks.run(4, stage)):
        assert norm == pytest.approx((2 + rank // 2) * 6**0.5, rel=1e-14)
        assert ops == ["c10d::allreduce_"]


def ddp() -> tuple[Record, list[str]]:
    model = DistributedDataParallel(net())
    optimizer = FusedRAdam(model.parameters(), **CLIP)
    record = train(model, optimizer, lambda t: mean_loss(model, t).backward())
    return record, collectives(record.ops)


def test_no_collective_where_each_rank_has_all_gradients(ranks: Ranks) -> None:
    for record, ops in ranks.run(2, ddp):
        assert ops == []
        assert difference(record, repeat(record, max_grad_norm=CLIP["max_grad_norm"])) is None


def zero(options: dict[str, Any], world: int) -> tuple[list[float], Record]:
    model = net()
    data = DistributedDataParallel(model)
    optimizer = ZeroRedundancyOptimizer(model.parameters(), FusedRAdam, **options)
    record = train(model, optimizer, lambda t: mean_loss(data, t).backward())
    return float(optimizer.optim.last_grad_norm), record


def test_zero_redundancy_optimizer(ranks: Ranks) -> None:
    """A local optimizer has some of the parameters, and the norm of all."""
    results = ranks.run(3, zero, CLIP, 3)
    alone = repeat(results[0][1], max_grad_norm=CLIP["max_grad_norm"])
    for norm, record in results:
        assert norm == pytest.approx(alone.norms[-1], rel=1e-14)
        assert all(torch.equal(p, q) for p, q in zip(record.last, alone.last, strict=True))


def more_ranks_than_parameters() -> tuple[float, float]:
    p = nn.Parameter(torch.zeros(4))
    optimizer = ZeroRedundancyOptimizer([p], FusedRAdam, **CLIP)
    p.grad = torch.ones(4)
    optimizer.step()
    return float(optimizer.optim.last_grad_norm), float(p[0])


def test_a_rank_without_parameters_takes_part(ranks: Ranks) -> None:
    first, second = ranks.run(2, more_ranks_than_parameters)
    assert first == second
    assert first[0] == 2.0
    assert first[1] < 0.0


def compiled() -> None:
    p = nn.Parameter(torch.zeros(4))
    p.grad = torch.ones(4)
    optimizer = FusedRAdam([p], **CLIP)
    optimizer.grad_norm_group = dist.group.WORLD
    torch.compile(optimizer.step, backend="eager")()


def test_compile_is_refused(ranks: Ranks) -> None:
    for outcome in ranks.outcomes(2, compiled):
        assert isinstance(outcome, Failed)
        assert "max_grad_norm over several ranks under torch.compile" in outcome.message


def stages() -> float:
    """Each rank has a stage of its own, and says so."""
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.full((3,), float(dist.get_rank() + 1))
    optimizer = FusedRAdam([p], **CLIP)
    optimizer.grad_norm_group = dist.group.WORLD
    optimizer.step()
    return float(optimizer.last_grad_norm)


def test_grad_norm_group(ranks: Ranks) -> None:
    assert ranks.run(3, stages) == [pytest.approx((3 * (1 + 4 + 9)) ** 0.5, rel=1e-14)] * 3


def apart() -> None:
    rows = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    params = [nn.Parameter(distribute_tensor(torch.zeros(4), rows[name], (Shard(0),))) for name in "ab"]
    FusedRAdam([("first", params[0]), ("second", params[1])], **CLIP).step()


def test_meshes_apart_are_refused(ranks: Ranks) -> None:
    for rank, outcome in enumerate(ranks.outcomes(4, apart)):
        assert isinstance(outcome, Failed)
        assert outcome.name == "ValueError"
        first, second = (rank % 2, rank % 2 + 2), (rank // 2 * 2, rank // 2 * 2 + 1)
        assert f"parameter 'second' is on ranks {second} and parameter 'first' on {first}" in outcome.message
