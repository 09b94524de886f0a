"""The Triton kernel of a norm: the squares of all gradients in 1,024 sums, in the order of `backends/ops.py`.

Each program takes whole sums, so that how many programs there are does not show in the bits. The lanes of a sum, and
of the run that is being added, stay in registers from its first tile to its last; full tiles of aligned gradients are
loaded 128 bits at a time.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

import triton
import triton.language as tl

from ...numerics.layout import NORM_TILE
from .constants import (
    LANES,
    NORM_ADDRESS,
    NORM_FIRST_TILE,
    NORM_FULL_TILES,
    NORM_LENGTH,
    NORM_RUN,
    NORM_STRIDES_AT,
    NORM_TILES,
    NORM_WIDTH,
)
from .step_kernel import widen

LEVELS = tl.constexpr(NORM_TILE.bit_length() - 1)
"""Of the tree over the lanes of a sum."""
_plus = tl.standard._sum_combine
"""What `tl.sum` reduces by; the interpreter knows it, and calls any other function once an element."""


@triton.jit
def tree_reduce(lanes):
    """The sum of LANES lanes as a tree: the second half is added to the first, again and again.

    A sum of two is one rounded addition, whichever comes first. (`tl.split` would hold all lanes in every thread.)
    """
    for _ in tl.static_range(LEVELS - 1):
        lanes = tl.reduce(tl.reshape(lanes, [2, lanes.shape[0] // 2]), 0, _plus)
    return tl.reduce(lanes, 0, _plus)


@triton.jit
def _strided(position, lane, strides_ptr):
    """Offsets of the elements that follow a row-major position by so many lanes.

    Only the position is divided in 64 bits, once a program: in each dimension the lanes carry over into the next one at
    most LANES times, or once where the dimension is longer than that.
    """
    offset = tl.full([LANES], 0, tl.int64)
    carry = lane
    for d in range(tl.load(strides_ptr)):
        size = tl.load(strides_ptr + 1 + 2 * d)
        stride = tl.load(strides_ptr + 2 + 2 * d)
        index = position % size
        position = position // size
        short = tl.minimum(size, LANES).to(tl.int32)
        if size > LANES:
            over = (carry >= size - index).to(tl.int32)
        else:
            over = (index.to(tl.int32) + carry) // short
        offset += (index + carry - over * size) * stride
        carry = over
    return offset


@triton.jit
def _add(lanes, run, in_run, grad, RUN: tl.constexpr):
    """Adds the squares of a tile to the run, and a run that has all its tiles to the lanes."""
    wide = widen(grad, RUN)
    run += wide * wide
    if RUN == tl.float32:
        in_run += 1
        if in_run == NORM_RUN:
            lanes += run.to(tl.float64)
            run = tl.zeros_like(run)
            in_run = 0
    return lanes, run, in_run


@triton.jit
def _sum(begin, end, from_segment, to_segment, segments_ptr, strides_ptr, GRAD: tl.constexpr):
    """The squares of the tiles from `begin` up to `end`, which are in those segments."""
    lane = tl.arange(0, LANES)
    lanes = tl.full([LANES], 0.0, tl.float64)
    RUN: tl.constexpr = tl.float64 if GRAD == tl.float64 else tl.float32
    run = tl.full([LANES], 0.0, RUN)
    in_run = 0
    for segment in range(from_segment, to_segment):
        segment_ptr = segments_ptr + segment * NORM_WIDTH
        g_ptr = tl.load(segment_ptr + NORM_ADDRESS).to(tl.pointer_type(GRAD))
        length = tl.load(segment_ptr + NORM_LENGTH)
        first = tl.load(segment_ptr + NORM_FIRST_TILE)
        # Of this gradient's own tiles those that belong to the sum; the full ones come first.
        tile = tl.maximum(begin - first, 0)
        stop = tl.minimum(end - first, tl.load(segment_ptr + NORM_TILES))
        full = tl.minimum(stop, tl.load(segment_ptr + NORM_FULL_TILES))
        strides_at = tl.load(segment_ptr + NORM_STRIDES_AT)
        for k in range(tile, full):
            grad = tl.load(tl.multiple_of(g_ptr + k * LANES, 16) + lane)
            lanes, run, in_run = _add(lanes, run, in_run, grad, RUN)
        for k in range(tl.maximum(tile, full), stop):
            inside = lane < tl.minimum(length - k * LANES, LANES).to(tl.int32)
            if strides_at >= 0:
                grad = tl.load(g_ptr + _strided(k * LANES, lane, strides_ptr + strides_at), mask=inside, other=0)
            else:
                grad = tl.load(g_ptr + k * LANES + lane, mask=inside, other=0)
            lanes, run, in_run = _add(lanes, run, in_run, grad, RUN)
    return tree_reduce(lanes + run.to(tl.float64))


@triton.jit(do_not_specialize=["tiles"])
def grad_norm_kernel(
    segments_ptr,  # int64 (n, NORM_WIDTH), none of them empty
    shares_ptr,  # int64 (SUMS, 2): the segments of a sum's tiles, from the first up to but without the second
    strides_ptr,  # int64: for each gradient with gaps its number of dimensions, then (size, stride), inner first
    sums_ptr,  # float64 (SUMS), written
    tiles: tl.int64,
    GRAD: tl.constexpr,
    SUMS: tl.constexpr,
    SKIP_EMPTY: tl.constexpr,
):
    """Every sum, by the programs in turn; with SKIP_EMPTY only those that have tiles, the others are zero before."""
    count = tl.minimum(tiles, SUMS) if SKIP_EMPTY else SUMS
    for k in range(tl.program_id(0), count, tl.num_programs(0)):
        s = ((k + 1) * SUMS - 1) // count if SKIP_EMPTY else k
        begin = tl.cast(s, tl.int64) * tiles // SUMS
        end = tl.cast(s + 1, tl.int64) * tiles // SUMS
        if begin < end:
            from_segment, to_segment = tl.load(shares_ptr + 2 * s), tl.load(shares_ptr + 2 * s + 1)
            total = _sum(begin, end, from_segment, to_segment, segments_ptr, strides_ptr, GRAD)
            tl.store(sums_ptr + s, total)
        else:
            tl.store(sums_ptr + s, 0.0)
