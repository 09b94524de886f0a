"""Shards of one DTensor draw the random numbers of their places in the whole tensor.

Where a rank's part is one run of the whole (`Shard(0)`, on meshes of any kind) every number of ranks has the bits of
one process; other parts have random numbers of their own places. No two shards draw alike, and replicas do.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

from radam_fused import FusedRAdam, step_in_backward
from radam_fused.dtensor import stretches
from radam_fused.numerics.layout import BEYOND, rng_offset_of
from tests.distributed.ranks import Ranks
from tests.distributed.test_checkpoints import gradient
from tests.support.helpers import same_bits

FORMATS: dict[str, dict[str, Any]] = {
    "stochastic": {"rounding": "stochastic"},
    "stochastic, bf16": {"rounding": "stochastic", "state_dtype": torch.bfloat16},
    "split, fp16": {"master_weights": "split", "state_dtype": torch.float16},
    "stochastic, int8": {"rounding": "stochastic", "state_dtype": torch.int8},
}
STEPS = 8
SHAPES = ((), (1,), (37,), (7, 5), (12, 3, 2))
"""Uneven and empty shards, of places between two groups of eight numbers; the one without dimensions is replicated."""
BLOCKS = ((64, 256), (37,), (48, 128))
"""Of whose rows the parts of up to four ranks are whole blocks of 8-bit codes."""
LAYOUTS: dict[str, tuple[tuple[int, ...], tuple[Any, ...]]] = {
    "Shard(0) over 2": ((2,), (Shard(0),)),
    "Shard(0) over 3": ((3,), (Shard(0),)),
    "Shard(0) over 4": ((4,), (Shard(0),)),
    "twice": ((2, 2), (Shard(0), Shard(0))),
    "right to left": ((2, 2), (_StridedShard(0, split_factor=2), Shard(0))),
    "hybrid": ((2, 2), (Replicate(), Shard(0))),
    "hybrid, the other way": ((2, 2), (Shard(0), Replicate())),
    "replicas": ((2,), (Replicate(),)),
}
"""Of a mesh and of placements, where every part is one run of the whole."""


def whole_parameters(shapes: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    return [torch.randn(s, generator=torch.Generator().manual_seed(k)).bfloat16() for k, s in enumerate(shapes)]


def spread(tensor: Tensor, mesh: Any, placements: Any) -> DTensor:
    if tensor.dim() == 0:
        placements = [Replicate()] * mesh.ndim
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


def run(params: list[nn.Parameter], options: dict[str, Any], in_backward: bool = False) -> list[Tensor]:
    """This rank's parts of the parameters and their moments in the end."""
    optimizer = FusedRAdam(params, lr=0.01, seed=5, **options)
    if in_backward:
        step_in_backward(optimizer)
    for t in range(STEPS):
        if in_backward:
            for k, p in enumerate(params):
                torch.autograd.backward([p.view_as(p)], [gradient(p, k, t)])
        else:
            for k, p in enumerate(params):
                p.grad = gradient(p, k, t)
        optimizer.step()
    values = [value for p in params for value in (p, *(v for v in optimizer.state[p].values() if v.shape == p.shape))]
    return [(v.to_local() if isinstance(v, DTensor) else v).detach().clone() for v in values]


def expected(options: dict[str, Any], mesh: Any, placements: Any, shapes: Any) -> list[Tensor]:
    """What one process ends with, and of it the parts that this rank has to have."""
    params = [nn.Parameter(value) for value in whole_parameters(shapes)]
    optimizer = FusedRAdam(params, lr=0.01, seed=5, backend="reference", **options)
    for t in range(STEPS):
        for k, p in enumerate(params):
            p.grad = gradient(p, k, t)
        optimizer.step()
    values = [value for p in params for value in (p, *(v for v in optimizer.state[p].values() if v.shape == p.shape))]
    return [spread(value.detach().clone(), mesh, placements).to_local() for value in values]


def as_one_process(layout: str, form: str, way: str) -> list[str]:
    """What differs from one process's parts."""
    mesh_shape, placements = LAYOUTS[layout]
    mesh = init_device_mesh("cpu", mesh_shape)
    shapes = BLOCKS if form.endswith("int8") else SHAPES
    params = [nn.Parameter(spread(value, mesh, placements)) for value in whole_parameters(shapes)]
    options = dict(FORMATS[form])
    found = run(params, {**options, "offload": way == "offload"}, way == "in backward")
    wanted = expected(options, mesh, placements, shapes)
    assert len(found) == len(wanted) > len(params)
    pairs = enumerate(zip(found, wanted, strict=True))
    return [f"value {k} of shape {tuple(a.shape)}" for k, (a, b) in pairs if not same_bits(a, b)]


@pytest.mark.sampled
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_as_one_process(layout: str, form: str, ranks: Ranks) -> None:
    world = torch.Size(LAYOUTS[layout][0]).numel()
    assert ranks.run(world, as_one_process, layout, form, "") == [[]] * world


@pytest.mark.sampled
@pytest.mark.parametrize("way", ["offload", "in backward"])
@pytest.mark.parametrize("layout", ["Shard(0) over 3", "right to left"])
def test_in_other_ways_to_step(layout: str, way: str, ranks: Ranks) -> None:
    world = torch.Size(LAYOUTS[layout][0]).numel()
    assert ranks.run(world, as_one_process, layout, "stochastic, bf16", way) == [[]] * world


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 10, dtype=torch.bfloat16)
        self.down = nn.Linear(10, 3, dtype=torch.bfloat16)


def tensor_parallel() -> dict[str, bool]:
    """FSDP2 over tensor parallel: of each parameter whether it has the bits of one process."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    torch.manual_seed(0)
    model = Net()
    names = [name for name, _ in model.named_parameters()]
    alone = [nn.Parameter(p.detach().clone()) for p in model.parameters()]
    parallelize_module(model, mesh["tensor"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    fully_shard(model, mesh=mesh["data"])
    for params, backend in ((list(model.parameters()), "auto"), (alone, "reference")):
        optimizer = FusedRAdam(params, lr=0.01, rounding="stochastic", backend=backend)
        for t in range(STEPS):
            for k, p in enumerate(params):
                p.grad = gradient(p, k, t)
            optimizer.step()
    return {
        name: same_bits(p.full_tensor(), q.detach())
        for name, p, q in zip(names, model.parameters(), alone, strict=True)
    }


def test_fsdp_over_tensor_parallel(ranks: Ranks) -> None:
    """All but the weight that is split by columns; its rows' parts are one run where a rank has one row."""
    for found in ranks.run(4, tensor_parallel):
        assert found == {"up.weight": True, "up.bias": True, "down.weight": False, "down.bias": True}


def alike(mesh_shape: tuple[int, ...], placements: tuple[Any, ...], shape: tuple[int, ...]) -> Tensor:
    """This rank's part after steps in which all elements are the same, and only what is drawn differs."""
    mesh = init_device_mesh("cpu", mesh_shape)
    params = [nn.Parameter(spread(torch.ones(shape, dtype=torch.bfloat16), mesh, placements)) for _ in range(2)]
    optimizer = FusedRAdam(params, lr=2e-4, rounding="stochastic", state_dtype=torch.bfloat16, rectification="none")
    for _ in range(30):
        for p in params:
            p.grad = spread(torch.ones(shape, dtype=torch.bfloat16), mesh, placements)
        optimizer.step()
    parts = [p.detach().to_local() for p in params]
    assert not torch.equal(*parts)
    return parts[0]


APART: dict[str, tuple[tuple[int, ...], tuple[Any, ...], tuple[tuple[int, ...], ...]]] = {
    "Shard(0)": ((4,), (Shard(0),), ((0,), (1,), (2,), (3,))),
    "Shard(1)": ((4,), (Shard(1),), ((0,), (1,), (2,), (3,))),
    "both": ((2, 2), (Shard(0), Shard(1)), ((0,), (1,), (2,), (3,))),
    "the last twice": ((2, 2), (_StridedShard(1, split_factor=2), Shard(1)), ((0,), (1,), (2,), (3,))),
    "no stretches": ((2, 2), (_StridedShard(0, split_factor=4), Shard(1)), ((0,), (1,), (2,), (3,))),
    "hybrid": ((2, 2), (Replicate(), Shard(0)), ((0, 2), (1, 3))),
    "hybrid over the last": ((2, 2), (Replicate(), Shard(1)), ((0, 2), (1, 3))),
    "replicas": ((4,), (Replicate(),), ((0, 1, 2, 3),)),
}
"""And which ranks hold the same."""


@pytest.mark.parametrize("case", APART)
def test_shards_draw_apart_and_replicas_alike(case: str, ranks: Ranks) -> None:
    mesh_shape, placements, replicas = APART[case]
    parts = ranks.run(4, alike, mesh_shape, placements, (64, 64))
    for group in replicas:
        assert all(torch.equal(parts[group[0]], parts[rank]) for rank in group)
    for a, b in itertools.combinations([parts[group[0]] for group in replicas], 2):
        assert a.shape == b.shape
        assert not torch.equal(a, b)
        assert (a != b).float().mean() > 0.2  # by chance some are equal


def begun(shapes: list[tuple[int, ...]]) -> list[list[tuple[int, int]]]:
    """Of each parameter where this rank's numbers begin and how many there are: whole, by rows and by columns."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    found = []
    for placement in (Replicate(), Shard(0), Shard(1)):
        of_placement = []
        for k, shape in enumerate(shapes):
            p = nn.Parameter(spread(torch.zeros(shape), mesh, [placement]))
            of_placement.append((rng_offset_of(p, 10_000 * k), p.to_local().numel()))
        found.append(of_placement)
    complex_one = nn.Parameter(spread(torch.zeros(6, 2, dtype=torch.complex64), mesh, [Shard(0)]))
    found.append([(rng_offset_of(complex_one, 64), 2 * complex_one.to_local().numel())])
    turned = nn.Parameter(DTensor.from_local(torch.zeros(4, 3).t(), mesh, [Shard(1)], run_check=False))
    found.append([(rng_offset_of(turned, 0), turned.to_local().numel())])
    odd = torch.zeros(3 + 2 * dist.get_rank(), 2)  # by no rule of torch.chunk's
    uneven = DTensor.from_local(odd, mesh, [Shard(0)], run_check=False, shape=torch.Size((8, 2)), stride=(2, 1))
    found.append([(rng_offset_of(uneven, 0), uneven.to_local().numel())])
    return found


def test_where_numbers_begin(ranks: Ranks) -> None:
    one, two = ranks.run(2, begun, [(8, 6), (5, 3), (1, 6)])
    assert one[0] == two[0] == [(0, 48), (10_000, 15), (20_000, 6)]
    assert (one[1], two[1]) == ([(0, 24), (10_000, 9), (20_000, 6)], [(24, 24), (10_009, 6), (20_000, 0)])
    # A single row is one run by columns too.
    assert one[2] == [(BEYOND, 24), (10_000 + BEYOND, 10), (20_000, 3)]
    assert two[2] == [(2 * BEYOND, 24), (10_000 + 2 * BEYOND, 5), (20_003, 3)]
    assert (one[3], two[3]) == ([(64, 12)], [(76, 12)])
    assert (one[4], two[4]) == ([(0, 12)], [(12, 12)])  # column by column in memory
    assert (one[5], two[5]) == ([(BEYOND, 6)], [(2 * BEYOND, 10)])


@pytest.mark.parametrize("seed", range(40))
def test_stretches_are_torchs(seed: int) -> None:
    """Against the indices that torch gives each rank, where these are a stretch."""
    generator = torch.Generator().manual_seed(seed)

    def pick(high: int) -> int:
        return int(torch.randint(0, high, (), generator=generator))

    shape, mesh = (2 * (1 + pick(9)), 6 * (1 + pick(3))), tuple(1 + pick(4) for _ in range(1 + pick(3)))
    placements: list[Any] = []
    for _ in mesh:
        kind, dim = pick(4), pick(2)
        placements.append(Replicate() if kind == 0 else Shard(dim))
    for coordinate in itertools.product(*map(range, mesh)):
        found = stretches(shape, mesh, coordinate, placements)
        assert found is not None
        pieces = [torch.arange(size) for size in shape]
        for parts, index, placement in zip(mesh, coordinate, placements, strict=True):
            if isinstance(placement, Shard):
                chunks = pieces[placement.dim].chunk(parts)
                pieces[placement.dim] = chunks[index] if index < len(chunks) else torch.arange(0)
        for (first, size), piece in zip(found, pieces, strict=True):
            assert size == len(piece)
            assert size == 0 or piece.tolist() == list(range(first, first + size))


@pytest.mark.parametrize(("size", "data", "tensor"), [(8, 2, 2), (7, 2, 2), (9, 4, 2), (10, 3, 3), (1, 2, 2)])
def test_stretches_right_to_left(size: int, data: int, tensor: int) -> None:
    """FSDP2 splits what tensor parallel has left, so the mesh dimension to the right comes first."""
    placements = [_StridedShard(0, split_factor=tensor), Shard(0)]
    for i, j in itertools.product(range(data), range(tensor)):
        outer = torch.arange(size).chunk(tensor)
        inner = outer[j].chunk(data) if j < len(outer) else ()
        piece = inner[i].tolist() if i < len(inner) else []
        [(first, count)] = stretches((size,), (data, tensor), (i, j), placements) or [(0, 0)]
        assert piece == list(range(first, first + count))


def test_no_stretches() -> None:
    assert stretches((8,), (2,), (0,), [_StridedShard(0, split_factor=2)]) is None
    assert stretches((8,), (2, 3), (0, 0), [_StridedShard(0, split_factor=2), Shard(0)]) is None
