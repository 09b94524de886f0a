"""The tables of a Triton step: where the elements of each segment are, and which tiles are whose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...numerics.layout import is_dense

ALIGNED = 16
"""Bytes: the width of a vector access."""
COLUMNS = 9
"""Of the segment table; the kernel names them."""


class Segment(NamedTuple):
    """A parameter, its gradient, where its moments start, which row it takes and where its random numbers begin."""

    param: Tensor
    grad: Tensor
    start: int
    row: int
    origin: int


def tile_map(lengths: Sequence[int], tile: int) -> Tensor:
    """Which segment each tile belongs to, int32, in pairs as int64."""
    tiles = torch.tensor([-(-length // tile) for length in lengths], dtype=torch.int64, device="cpu")
    segments = torch.repeat_interleave(torch.arange(len(lengths), dtype=torch.int32, device="cpu"), tiles)
    return torch.nn.functional.pad(segments, (0, segments.numel() % 2)).view(torch.int64)


def segment_table(segments: Sequence[Segment], tile: int) -> Tensor:
    """The table, and behind it the walks of its strided segments."""
    table: list[int] = []
    walks: list[int] = []
    first_tile = 0
    for param, grad, start, row, origin in segments:
        length = param.numel()
        addresses = param.data_ptr(), grad.data_ptr()
        steps = _walk(param, grad) if length else None
        aligned = steps is None and all(address % ALIGNED == 0 for address in addresses)
        at = -1 if steps is None else COLUMNS * len(segments) + len(walks)
        table += (*addresses, start, length, row, first_tile, aligned, at, origin)
        walks += steps or ()
        first_tile += -(-length // tile)
    return torch.tensor(table + walks, dtype=torch.int64, device="cpu")


def _walk(param: Tensor, grad: Tensor) -> list[int] | None:
    """How to find a strided pair's elements in the order of its moments, inner dimension first; None if both are plain.

    The Python twin of ``plain`` in csrc/args/segment.h.
    """
    if param.is_contiguous() and grad.is_contiguous():
        return None
    dims = list(range(param.dim()))
    if is_dense(param):
        dims.sort(key=list(param.stride()).__getitem__, reverse=True)
        ordered = [d for d in dims if param.shape[d] != 1]
        if is_dense(grad) and [grad.stride(d) for d in ordered] == [param.stride(d) for d in ordered]:
            return None
    walk = [len(dims)]
    for d in reversed(dims):
        walk += [param.shape[d], param.stride(d), grad.stride(d)]
    return walk
