"""The correctness check of the benchmarks finds a wrong element wherever it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.harness import correctness
from bench.harness.correctness import CorrectnessCheck, compare, drawn, pieces
from bench.harness.interleave import set_up
from bench.optimizers.baselines import BASELINES, Skipped
from bench.optimizers.candidates import CPU_CANDIDATES, Runner
from bench.workloads.cases import CASES

STEPS = 8
SHAPES = ((5,), (3, 4), (), (0,), (30,))


def values(scale: float, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) * scale for shape in SHAPES]


def trained(start: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    make = torch.optim.RAdam
    return [correctness.stepped(make, p, g, STEPS) for p, g in zip(start, grads, strict=True)]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correctness, "PIECE", 7)


def test_pieces_are_all_elements_in_order() -> None:
    tensors = values(1.0, 0)
    found = list(pieces(tensors, 7))
    assert [piece.numel() for piece in found] == [7, 7, 7, 7, 7, 7, 6]
    assert torch.equal(torch.cat(found), torch.cat([tensor.flatten() for tensor in tensors]))


def test_drawn_pieces_hold_the_ends() -> None:
    assert drawn(5, 5) == {0, 1, 2, 3, 4}
    assert len(drawn(1000, 64)) == 64
    assert {0, 999} <= drawn(1000, 64)
    assert drawn(1000, 64) == drawn(1000, 64)
    assert drawn(0, 64) == set()


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("place", [None, 0, 24, 47])
def test_one_element_off_is_noticed(place: int | None) -> None:
    start, grads = values(0.02, 0), values(0.01, 1)
    ends = trained(start, grads)
    if place is not None:
        flat = torch.cat([end.flatten() for end in ends])
        flat[place] += 1e-4
        ends = [piece.view(end.shape) for piece, end in zip(flat.split([e.numel() for e in ends]), ends, strict=True)]
    found = compare(
        [CPU_CANDIDATES["radam-foreach"]], {"radam-foreach": Runner(lambda: None, ends, steps=STEPS)}, start, grads
    )
    assert found.agrees is (place is None)
    assert found.moves == {"radam-foreach": True}


@pytest.mark.usefixtures("small_pieces")
def test_parameters_that_stand_still_are_noticed() -> None:
    start, grads = values(0.02, 0), values(0.01, 1)
    still = {"adamw-fused": Runner(lambda: None, start, steps=STEPS)}
    found = compare([CPU_CANDIDATES["adamw-fused"]], still, start, grads)
    assert found.moves == {"adamw-fused": False}
    assert found.agrees is None


@pytest.mark.usefixtures("small_pieces")
def test_other_bits_are_noticed() -> None:
    """One ulp is within the tolerance, and not what FusedRAdam targets."""
    start, grads = values(0.02, 0), values(0.01, 1)
    from radam_fused import FusedRAdam

    pairs = zip(start, grads, strict=True)
    ends = [correctness.stepped(FusedRAdam, p, g, STEPS, backend="reference") for p, g in pairs]
    fused = CPU_CANDIDATES["fused"]
    assert compare([fused], {"fused": Runner(lambda: None, ends, steps=STEPS)}, start, grads).agrees is True
    ends[0].view(torch.int32)[1] += 1
    found = compare([fused], {"fused": Runner(lambda: None, ends, steps=STEPS)}, start, grads)
    assert found.bits == {"fused": False}
    assert found.agrees is False


@pytest.mark.parametrize("name", BASELINES)
def test_gradients_are_left_alone(name: str) -> None:
    """They are shared; a baseline that writes them has to say so, and then gets its own."""
    case = CASES["tiny"]
    start, grads = case.values(0.02, 0), case.values(0.01, 1)
    if BASELINES[name].setup is not None:
        pytest.skip("compiles for a minute; a run notices, as then nothing agrees")
    try:
        set_up(CPU_CANDIDATES[name], case, start, grads)
    except Skipped as reason:
        pytest.skip(str(reason))
    assert all(map(torch.equal, start, case.values(0.02, 0)))
    assert all(map(torch.equal, grads, case.values(0.01, 1)))


def test_verdicts() -> None:
    right = {"steps": {"fused": 9}, "differences": {"fused": 1e-8}, "required": ["fused"], "moves": {"fused": True}}
    assert CorrectnessCheck(moved=1e-2, **right).agrees is True
    assert CorrectnessCheck(moved=1e-7, **right).agrees is False  # a tolerance shows nothing of what hardly moves
    assert CorrectnessCheck(moved=1e-2, **{**right, "differences": {"fused": 1e-5}}).agrees is False
    assert CorrectnessCheck(moved=1e-2, **{**right, "moves": {"fused": False}}).agrees is False
    assert CorrectnessCheck(moved=1e-2, bits={"fused": False}, **right).agrees is False
    assert CorrectnessCheck({}).agrees is None


def test_the_worse_of_two_memory_groups_counts() -> None:
    found = CorrectnessCheck({})
    found.merge(CorrectnessCheck({"a": 9}, 1e-2, {"a": 1e-8}, ["a"], {"a": True}, {"a": True}))
    assert found.agrees is True
    assert found.moved == 1e-2
    found.merge(
        CorrectnessCheck(
            {"a": 9, "b": 9}, 1e-3, {"a": 1e-5, "b": 1e-9}, ["a", "b"], {"a": False}, {"a": True, "b": True}
        )
    )
    assert (found.moved, found.differences, found.bits) == (1e-3, {"a": 1e-5, "b": 1e-9}, {"a": False})
    assert found.required == ["a", "b"]
    assert found.agrees is False
