"""Ranks that disagree get an error that names the parameter, or work; none of them waits for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

from radam_fused import FusedRAdam
from tests.distributed.ranks import Failed, Ranks
from tests.distributed.training import OPTIONS
from tests.support.helpers import same_bits

CLIP = {"max_grad_norm": 0.5}
clipping = pytest.mark.parametrize("clip", [{}, CLIP], ids=["", "max_grad_norm"])
ODD = 1
"""The rank that is unlike the others."""


def made(shapes: dict[str, tuple[int, ...]]) -> list[tuple[str, nn.Parameter]]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return [
        (name, nn.Parameter(distribute_tensor(torch.ones(shape), mesh, [Shard(0)]))) for name, shape in shapes.items()
    ]


def give(p: nn.Parameter, value: float) -> None:
    value = torch.full(p.shape, value, dtype=p.dtype)
    p.grad = distribute_tensor(value, p.device_mesh, p.placements, src_data_rank=None)


def of(p: nn.Parameter, local: Tensor) -> None:
    p.grad_dtype = None  # any: otherwise torch itself refuses another dtype
    p.grad = DTensor.from_local(local, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())


def of_int(p: nn.Parameter) -> None:
    of(p, p.to_local().detach().long())


def of_double(p: nn.Parameter) -> None:
    of(p, p.to_local().detach().double())


def plain(p: nn.Parameter) -> None:
    p.grad = torch.ones(p.shape)


def other_rows(p: nn.Parameter) -> None:
    of(p, torch.ones(5, 3))


WRONG: dict[str, tuple[Callable[[Any], None], str]] = {
    "int64": (of_int, "gradient of parameter 'second' is torch.int64"),
    "float64": (of_double, "gradient of parameter 'second' is torch.float64"),
    "plain": (plain, "gradient of parameter 'second' is a Tensor"),
    "rows": (other_rows, "gradient of parameter 'second' has shape (5, 3) on this rank: must be (2, 3)"),
}


def one_wrong(which: str, options: dict[str, Any]) -> None:
    named = made({"first": (6, 3), "second": (4, 3)})
    optimizer = FusedRAdam(named, **OPTIONS, **options)
    for t in range(3):
        for _, p in named:
            give(p, 1.0)
        if t == 2 and dist.get_rank() == ODD:
            WRONG[which][0](named[1][1])
        before = [p.to_local().detach().clone() for _, p in named]
        try:
            optimizer.step()
        finally:
            if t == 2 and (options or dist.get_rank() == ODD):  # nothing was written
                assert all(same_bits(q, p.to_local()) for (_, p), q in zip(named, before, strict=True))


@clipping
@pytest.mark.parametrize("which", WRONG)
def test_a_gradient_that_does_not_fit(which: str, clip: dict[str, Any], ranks: Ranks) -> None:
    outcomes = ranks.outcomes(3, one_wrong, which, clip)
    for rank, outcome in enumerate(outcomes):
        if rank == ODD:
            assert isinstance(outcome, Failed)
            assert WRONG[which][1] in outcome.message
        elif clip:  # the others hear of it in the all-reduce, and no rank has stepped
            assert isinstance(outcome, Failed)
            assert f"no rank has stepped, as a gradient does not fit on rank {ODD}" in outcome.message
            assert WRONG[which][1] in outcome.message
        else:
            assert outcome is None  # has stepped, and waits for no rank


def missing(which: list[str], options: dict[str, Any]) -> tuple[list[float], list[float], float | None]:
    """The step counts, the parameters' first elements, and the norm, where a rank lacks some of the gradients."""
    named = made({"first": (6, 3), "second": (6, 3)})
    optimizer = FusedRAdam(named, **OPTIONS, **options)
    for _ in range(7):
        for name, p in named:
            give(p, 1.0)
            if dist.get_rank() == ODD and name in which:
                p.grad = None
        optimizer.step()
    counts = [float(optimizer.state[p]["step"]) if optimizer.state.get(p) else 0.0 for _, p in named]
    norm = None if optimizer.last_grad_norm is None else float(optimizer.last_grad_norm)
    return counts, [float(p.to_local()[0, 0]) for _, p in named], norm


@clipping
@pytest.mark.parametrize("which", [["second"], ["first", "second"]], ids=" and ".join)
def test_a_gradient_that_is_missing_on_one_rank(which: list[str], clip: dict[str, Any], ranks: Ranks) -> None:
    """What has a gradient is stepped, on each rank; the norm is of what there is."""
    results = ranks.run(3, missing, which, clip)
    there = 36 - 6 * len(which)
    for rank, (counts, values, norm) in enumerate(results):
        skipped = which if rank == ODD else []
        assert counts == [0.0 if name in skipped else 7.0 for name in ("first", "second")]
        assert [value == 1.0 for value in values] == [name in skipped for name in ("first", "second")]
        assert norm == (pytest.approx(there**0.5, rel=1e-14) if clip else None)


def other_dtype(what: str) -> tuple[list[torch.dtype], list[Tensor], float]:
    named = made({"first": (6, 3), "second": (4, 3)})
    if dist.get_rank() == ODD and what == "parameter":
        named = [(name, nn.Parameter(p.detach().double())) for name, p in named]
    optimizer = FusedRAdam(named, **OPTIONS, **CLIP)
    for t in range(7):
        for _, p in named:
            give(p, 1.0 + t)
            if dist.get_rank() == ODD and what == "gradient":
                of(p, p.grad.to_local().bfloat16())
        optimizer.step()
    return [p.dtype for _, p in named], [p.to_local().detach() for _, p in named], float(optimizer.last_grad_norm)


@pytest.mark.parametrize("what", ["parameter", "gradient"])
def test_another_dtype_on_one_rank(what: str, ranks: Ranks) -> None:
    """Works: each rank steps in the dtypes that it has."""
    results = ranks.run(3, other_dtype, what)
    odd = torch.float64 if what == "parameter" else torch.float32
    assert [dtypes[0] for dtypes, _, _ in results] == [odd if rank == ODD else torch.float32 for rank in range(3)]
    assert len({norm for _, _, norm in results}) == 1
    for _, values, norm in results:
        assert norm == pytest.approx(7.0 * 30**0.5, rel=1e-14)
        assert torch.allclose(values[0].double(), results[0][1][0].double(), atol=1e-6, rtol=0)


def pending() -> str:
    """A parameter that is a pending sum."""
    mesh = init_device_mesh("cpu", (2,))
    FusedRAdam([("p", nn.Parameter(DTensor.from_local(torch.ones(3), mesh, [Partial()], run_check=False)))])
    return "made"


def under_flatten() -> str:
    FusedRAdam(made({"p": (6, 3)}), flatten=True)
    return "made"


REFUSED = {
    pending: "parameter 'p' has placements (Partial(sum),): must be Shard or Replicate",
    under_flatten: "flatten=True: parameter 'p' is a DTensor",
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_refused(make: Callable[[], str], ranks: Ranks) -> None:
    for outcome in ranks.outcomes(2, make):
        assert isinstance(outcome, Failed)
        assert outcome.name == "ValueError"
        assert REFUSED[make] in outcome.message


def waits_for_ever() -> None:
    """As a step would whose ranks do not all come to its collective."""
    if dist.get_rank() == ODD:
        time.sleep(600)
    dist.barrier()


def test_a_hang_is_noticed() -> None:
    """The negative control of all of the above, in processes of its own: they are killed."""
    pool = Ranks(2)
    try:
        assert pool.run(2, dist.get_world_size) == [2, 2]  # they have started, which takes a while
        pool.seconds = 1.0
        with pytest.raises(TimeoutError, match="rank 0 of 2 hangs in waits_for_ever"):
            pool.run(2, waits_for_ever)
    finally:
        pool.stop()


def counts_apart() -> None:
    """As after a group that could not be made: the ranks have counted different numbers of groups."""
    rank = dist.get_rank()
    dist.destroy_process_group()
    dist.distributed_c10d._world.group_count = rank


def test_a_group_that_could_not_be_made_harms_no_later_one() -> None:
    pool = Ranks(2, seconds=60.0)
    try:
        pool.run(2, counts_apart)
        assert pool.run(2, dist.get_world_size) == [2, 2]
    finally:
        pool.stop()


@pytest.mark.long
def test_ranks_that_could_not_meet_try_again(capfd: pytest.CaptureFixture[str]) -> None:
    pool = Ranks(2, seconds=60.0)
    try:
        Path(pool._folder.name, "1").mkdir()  # where the first process group's file would be
        assert pool.run(2, dist.get_world_size) == [2, 2]
        assert "could not meet, attempt 1 of 3" in capfd.readouterr().err
        for run in range(3, 6):
            Path(pool._folder.name, str(run)).mkdir()
        with pytest.raises(RuntimeError, match="2 ranks could not meet in 3 attempts"):
            pool.run(2, dist.get_world_size)
    finally:
        pool.stop()
