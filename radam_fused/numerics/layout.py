"""The flat index space of a bucket: where each parameter's segment starts, and which random bits it uses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ..dtensor import is_sharded, local, shard_of

BLOCK = 256
"""Elements of int8 moments that share a scale; must match ``kBlockElements`` in csrc/numerics/state_format.h."""
ALIGNMENT = BLOCK
"""Large segments start at multiples of this many elements, a multiple of every vector access and quantisation block."""
SMALL = 4096
"""Parameters with fewer elements are never quantised, so their segments are aligned for vector accesses only."""
SMALL_ALIGNMENT = 64
NORM_TILE = 1024
"""Elements of a gradient that are added to as many lanes at once; ``kTile`` in csrc/numerics/grad_norm_order.h."""
NORM_RUN = 16
"""Tiles whose squares are added in float32, before their sum is added in float64 (of float64 gradients
all are); ``kRun`` there."""
PARTIAL_SUMS = 1024
"""The number of partial sums of a gradient norm; ``kPartialSums`` in csrc/numerics/grad_norm_order.h."""
BEYOND = 1 << 44
"""More elements than a model has. The random bits of shards that are not contiguous in their parameter start here."""


def segment_starts(lengths: Sequence[int], coded: bool = False) -> tuple[list[int], int]:
    """Aligned starts of consecutive segments of the given lengths, and the length of the buffer that holds them.

    With ``coded`` all segments are quantised in blocks, also short ones: a small shard of a large parameter, say.
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
    """Whether the tensor's elements fill a contiguous range of memory, each once, with dimensions in any order."""
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
    """The tensor that a step updates: a DTensor's local tensor; a complex tensor as real numbers, (..., 2)."""
    tensor = local(tensor)
    return torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor


def whole_numel(param: Tensor) -> int:
    """The number of real numbers in a parameter; of a DTensor, on all ranks together."""
    return param.numel() * (2 if param.is_complex() else 1)


def rng_length(param: Tensor) -> int:
    """How many random numbers of the sequence that an optimizer's parameters share belong to a parameter.

    0 for a parameter that cannot be stepped: uninitialised (of a lazy module), sparse, nested or quantized.
    """
    if is_lazy(param) or param.layout != torch.strided or param.is_nested or param.is_quantized:
        return 0
    return whole_numel(param)


def moment_strides(param: Tensor) -> tuple[int, ...]:
    """The strides of a parameter's moments: its own if it is dense, row-major otherwise."""
    if is_dense(param):
        return tuple(param.stride())
    strides = []
    stride = 1
    for size in reversed(param.shape):
        strides.append(stride)
        stride *= max(size, 1)
    return tuple(reversed(strides))


def rng_offset_of(param: Tensor, start: int) -> int:
    """The index of the first random number of this rank's shard of a parameter.

    A shard that is contiguous in the whole parameter, in memory order, such as ``Shard(0)`` of a row-major parameter,
    uses the random numbers of its elements in the whole. The result then does not depend on the number of ranks. The
    elements of other shards (``Shard(1)``, for example) are not consecutive in the whole. Such a shard uses random
    numbers beyond those of all parameters, from an offset by its index among the shards, so that no two shards use the
    same. Replicas use the same.

    Args:
        param: a parameter, DTensor or not.
        start: the index of the first random number of the whole parameter.
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
    """The index of a shard's first element in the whole, in memory order; None if the shard is not contiguous there.

    Args:
        found: the shard's first index and number of indices in each dimension (`radam_fused.dtensor.stretches`).
        shape: of the whole tensor.
        strides: of the whole tensor, which is dense.
        own: strides of the shard, which is dense too.
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
