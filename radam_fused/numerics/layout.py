"""The flat index space: where the state of each parameter is stored."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ..dtensor import is_sharded, local, shard_of

BLOCK = 256
"""Elements that share a scale under int8 moments: ``kBlockElements`` in csrc/numerics/state_format.h."""
ALIGNMENT = BLOCK
"""Starts of large segments, in elements: a multiple of every vector access and of a quantisation block."""
SMALL = 4096
"""Parameters shorter than this are never quantised, so vector accesses alone set their segments' alignment."""
SMALL_ALIGNMENT = 64
NORM_TILE = 1024
"""Elements of a gradient whose squares are added side by side, one a lane."""
PARTIAL_SUMS = 1024
"""Into how many sums a gradient norm is split, whatever computes it (`radam_fused.backends.ops`)."""


BEYOND = 1 << 44
"""More places than all parameters of a model have: those of shards that are no run of their parameter begin there."""


def segment_starts(lengths: Sequence[int], coded: bool = False) -> tuple[list[int], int]:
    """Aligned starts of consecutive segments of the given lengths, and the length of the buffer that holds them.

    All are ``coded`` in blocks, or none: a small shard of a large parameter is.
    """
    starts = []
    end = 0
    for length in lengths:
        alignment = ALIGNMENT if coded or length >= SMALL else SMALL_ALIGNMENT
        start = -(-end // alignment) * alignment
        starts.append(start)
        end = start + length
    return starts, -(-end // ALIGNMENT) * ALIGNMENT


def is_dense(tensor: Tensor) -> bool:
    """Whether the tensor fills one stretch of memory, each place once, in whatever order of dimensions."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def as_real(tensor: Tensor) -> Tensor:
    """What a step sees: of a DTensor this rank's part, of a complex tensor the real numbers in it, (..., 2)."""
    tensor = local(tensor)
    return torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor


def whole_numel(param: Tensor) -> int:
    """How many real numbers a parameter consists of, on all ranks together where it is a DTensor."""
    return param.numel() * (2 if param.is_complex() else 1)


def rng_length(param: Tensor) -> int:
    """How many random numbers a parameter takes of the sequence that all of an optimizer's parameters share.

    None while it cannot be stepped for its kind: of a lazy module that has not run, sparse, nested, quantized.
    """
    if is_lazy(param) or param.layout != torch.strided or param.is_nested or param.is_quantized:
        return 0
    return whole_numel(param)


def moment_strides(param: Tensor) -> tuple[int, ...]:
    """Strides of a parameter's moments: its own where it is dense, row-major otherwise."""
    if is_dense(param):
        return tuple(param.stride())
    strides = []
    stride = 1
    for size in reversed(param.shape):
        strides.append(stride)
        stride *= max(size, 1)
    return tuple(reversed(strides))


def rng_offset_of(param: Tensor, start: int) -> int:
    """Where the random numbers of this rank's part of a parameter begin, where those of the whole begin at ``start``.

    A part that is one run of the whole in memory order, as `Shard(0)` of a row-major parameter, uses the random bits of
    its place in the whole: any number of ranks uses those that one process does. The elements of any other part (of
    `Shard(1)`, say) have no consecutive places. Such a part uses random bits beyond those of all parameters, by its
    number among the shards, so that no two shards use the same. Replicas use the same.
    """
    if not is_sharded(param):
        return start
    number, found = shard_of(param)
    if found is not None:
        begin = _run(found, param.shape, moment_strides(param), moment_strides(local(param)))
        if begin is not None:
            return start + begin * (2 if param.is_complex() else 1)
    return start + (1 + number) * BEYOND


def _run(
    found: Sequence[tuple[int, int]], shape: Sequence[int], strides: Sequence[int], own: Sequence[int]
) -> int | None:
    """Where a part, the `stretches` of each dimension, begins in the whole, both in memory order; None if it is no run.

    Args:
        found: of each dimension the first index of the part and how many there are.
        shape: the whole's sizes.
        strides: the whole's, which has no gaps.
        own: the part's, which has none either.
    """
    order = sorted(range(len(shape)), key=strides.__getitem__, reverse=True)
    if any(size == 0 for _, size in found):
        return 0
    several = [at for at, d in enumerate(order) if found[d][1] > 1]  # all before the first of these have one index
    inner = order[several[0] + 1 :] if several else []
    whole = all(found[d][1] == shape[d] for d in inner)
    same_order = all(own[order[a]] > own[order[b]] for a, b in pairwise(several))
    return sum(found[d][0] * strides[d] for d in order) if whole and same_order else None


def layout_hash(shape: Sequence[int], strides: Sequence[int]) -> int:
    """A hash of a layout, int64 (FNV-1a). Must match ``layout_hash`` in csrc/args/segment.h bit for bit."""
    value = 14695981039346656037
    for pair in zip(shape, strides, strict=True):
        for number in pair:
            value = (value ^ number) * 1099511628211 % 2**64
    return value - 2**64 if value >= 2**63 else value
