"""Which random numbers a parameter and its shards use, on one process that plays each rank in turn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import Replicate, Shard

from radam_fused.numerics.layout import BEYOND, rng_length, rng_offset_of
from tests.support.fake_ranks import RANKS, as_each_rank

START = 1000


def in_memory_order(tensor: Tensor) -> list[int]:
    order = sorted(range(tensor.dim()), key=tensor.stride().__getitem__, reverse=True)
    return tensor.permute(order).flatten().tolist()


WHOLE = {
    "row-major": lambda: torch.arange(48).view(8, 6),
    "transposed": lambda: torch.arange(48).view(6, 8).t(),
    "one row": lambda: torch.arange(48).view(1, 8, 6),
    "three": lambda: torch.arange(120).view(8, 5, 3),
    "uneven": lambda: torch.arange(10).view(5, 2),
    "short": lambda: torch.arange(6).view(2, 3),
}
"""Each element is its place in memory."""
LAYOUTS = {
    "first": ((4,), (Shard(0),), 4),
    "second": ((4,), (Shard(1),), 4),
    "both": ((2, 2), (Shard(0), Shard(1)), 4),
    "replicas": ((2, 2), (Replicate(), Shard(0)), 2),
}
"""The mesh, the placements, and how many shards differ."""


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", WHOLE)
def test_a_shard_uses_the_numbers_of_its_places(name: str, layout: str) -> None:
    """Where its elements are consecutive in the whole; numbers of its own beyond those of all parameters elsewhere."""
    mesh, placements, shards = LAYOUTS[layout]
    offsets = []
    for part in as_each_rank(mesh, placements, WHOLE[name]()):
        places = in_memory_order(part.to_local())
        offsets.append(rng_offset_of(part, START))
        if not places:
            assert offsets[-1] == START
        elif places == list(range(places[0], places[0] + len(places))):
            assert offsets[-1] == START + places[0]
        else:
            assert offsets[-1] == START + (1 + (len(offsets) - 1) % shards) * BEYOND
    assert len(offsets) == RANKS


def test_a_complex_shard_has_two_numbers_for_an_element() -> None:
    whole = torch.zeros(8, 3, dtype=torch.complex64)
    parts = as_each_rank((4,), (Shard(0),), whole)
    assert [rng_offset_of(part, START) for part in parts] == [START + 12 * rank for rank in range(RANKS)]


def test_replicas_that_are_not_consecutive_share_their_numbers() -> None:
    parts = as_each_rank((2, 2), (Replicate(), Shard(1)), torch.arange(48).view(8, 6))
    assert [rng_offset_of(part, 0) for part in parts] == [BEYOND, 2 * BEYOND] * 2


def test_a_whole_parameter_uses_the_numbers_from_its_start() -> None:
    assert rng_offset_of(torch.zeros(8, 3), START) == START


@pytest.mark.parametrize(
    ("param", "length"),
    [
        (torch.zeros(3, 5), 15),
        (torch.zeros(3, 5, dtype=torch.complex64), 30),
        (torch.zeros(()), 1),
        (nn.UninitializedParameter(), 0),
        (torch.zeros(4, 4).to_sparse(), 0),
        (torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), 0),
        (torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.qint8), 0),
    ],
    ids=["real", "complex", "scalar", "lazy", "sparse", "nested", "quantized"],
)
def test_how_many_numbers_a_parameter_has(param: Tensor, length: int) -> None:
    assert rng_length(param) == length
