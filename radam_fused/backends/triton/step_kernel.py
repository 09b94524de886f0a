"""The Triton kernel: the numeric contract over the segment table, one launch for a whole bucket.

A persistent grid loops over tiles; a tile belongs to one segment. Full tiles of contiguous, 16-byte aligned segments
are accessed without a mask, so that Triton emits 128-bit accesses. Partial tiles, misaligned views and strided tensors
take the general path.
16-bit values are rounded in integer arithmetic or by exact casts, so that the interpreter gives the GPU's bits.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

import triton
import triton.language as tl

from .constants import (
    ALIGNED,
    FIRST_TILE,
    GRAD_ADDRESS,
    LENGTH,
    NO_PARAM_UPDATE,
    PARAM_ADDRESS,
    RECTIFIED,
    S_BETA2,
    S_DECAY_FACTOR,
    S_EPS,
    S_GRAD_SCALE_FACTOR,
    S_L2_DECAY,
    S_ONE_MINUS_BETA1,
    S_ONE_MINUS_BETA2,
    S_STEP_SIZE,
    S_UPDATE_RULE,
    S_WIDTH,
    SCALAR_INDEX,
    SEGMENT_WIDTH,
    SKIP_STEP,
    START,
    STRIDES_AT,
)


@triton.jit
def widen(stored, COMPUTE: tl.constexpr):
    """A stored value in the dtype of the computation, exactly."""
    if stored.dtype == tl.int16:  # a bfloat16, loaded as its bits
        return (stored.to(tl.int32) << 16).to(tl.float32, bitcast=True).to(COMPUTE)
    else:
        return stored.to(COMPUTE)


@triton.jit
def narrow(value, STORED: tl.constexpr):
    """A computed value as it is stored, rounded to nearest even."""
    if STORED == tl.int16:  # a bfloat16: round to nearest even by hand, for the interpreter's cast truncates
        bits = value.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
        return tl.where(is_nan, 0x7FC0, rounded).to(tl.int16)
    else:
        return value.to(STORED)


@triton.jit
def update_moments(p, g, m, v, scalars_ptr, COMPUTE: tl.constexpr):
    """Both moments after the step, and the update's update_rule d."""
    # The rows are float64; this is where they are rounded, once, to the dtype of the computation.
    one_minus_beta1 = tl.load(scalars_ptr + S_ONE_MINUS_BETA1).to(COMPUTE)
    beta2 = tl.load(scalars_ptr + S_BETA2).to(COMPUTE)
    one_minus_beta2 = tl.load(scalars_ptr + S_ONE_MINUS_BETA2).to(COMPUTE)
    eps = tl.load(scalars_ptr + S_EPS).to(COMPUTE)
    l2_decay = tl.load(scalars_ptr + S_L2_DECAY).to(COMPUTE)
    grad_scale_factor = tl.load(scalars_ptr + S_GRAD_SCALE_FACTOR).to(COMPUTE)
    update_rule = tl.load(scalars_ptr + S_UPDATE_RULE)

    g = g * grad_scale_factor
    g = tl.where(l2_decay != 0, g + l2_decay * p, g)
    m = m + one_minus_beta1 * (g - m)
    # From beta2 = 1/2 on v is moved by what it lacks: csrc/numerics/radam_update.h, second_moment. One product of v
    # serves both ways.
    by_difference = beta2 >= 0.5
    product = tl.where(by_difference, one_minus_beta2, beta2) * v
    square = (one_minus_beta2 * g) * g
    v = tl.where(by_difference, v, product) + tl.where(by_difference, square - product, square)
    if COMPUTE == tl.float64:
        adaptive = m / (tl.sqrt(v) + eps)
    else:
        adaptive = tl.math.div_rn(m, tl.math.sqrt_rn(v) + eps)
    return m, v, tl.where(update_rule == RECTIFIED, adaptive, m)


@triton.jit
def decrease(p, d, scalars_ptr, COMPUTE: tl.constexpr):
    """What the step takes from the parameter; without decay no product with it, which may be infinite."""
    decay = tl.load(scalars_ptr + S_DECAY_FACTOR).to(COMPUTE)
    step = tl.load(scalars_ptr + S_STEP_SIZE).to(COMPUTE) * d
    return tl.where(decay != 0, decay * p + step, step)


@triton.jit
def update(p, g, m, v, scalars_ptr, COMPUTE: tl.constexpr):
    """Parameter and both moments after the step."""
    update_rule = tl.load(scalars_ptr + S_UPDATE_RULE)
    m, v, d = update_moments(p, g, m, v, scalars_ptr, COMPUTE)
    return tl.where(update_rule == NO_PARAM_UPDATE, p, p - decrease(p, d, scalars_ptr, COMPUTE)), m, v


@triton.jit
def strided(position, strides_ptr):
    """Offsets of parameter and gradient elements from their positions in the order of the moments."""
    p_index = tl.zeros_like(position)
    g_index = tl.zeros_like(position)
    for d in range(tl.load(strides_ptr)):
        size = tl.load(strides_ptr + 1 + 3 * d)
        index = position % size
        position = position // size
        p_index += index * tl.load(strides_ptr + 2 + 3 * d)
        g_index += index * tl.load(strides_ptr + 3 + 3 * d)
    return p_index, g_index


@triton.jit
def zero(segment_ptr, tile, strides_ptr, GRAD: tl.constexpr, TILE: tl.constexpr, SLICE: tl.constexpr):
    """Leaves zeros in a tile of a gradient, by the same two paths; reads its segment again, to spare registers."""
    g_ptr = tl.load(segment_ptr + GRAD_ADDRESS).to(tl.pointer_type(GRAD))
    offset = (tile - tl.load(segment_ptr + FIRST_TILE)) * TILE
    count = tl.minimum(tl.load(segment_ptr + LENGTH) - offset, TILE).to(tl.int32)
    aligned = tl.load(segment_ptr + ALIGNED)
    strides_at = tl.load(segment_ptr + STRIDES_AT)
    if (aligned != 0) & (count == TILE):
        tl.store(tl.multiple_of(g_ptr + offset, 16) + tl.arange(0, TILE), tl.zeros([TILE], GRAD))
    else:
        for begin in range(0, count, SLICE):
            lane = begin + tl.arange(0, SLICE)
            g_index = offset + lane
            if strides_at >= 0:
                _, g_index = strided(g_index, strides_ptr + strides_at)
            tl.store(g_ptr + g_index, tl.zeros([SLICE], GRAD), mask=lane < count)


@triton.jit(do_not_specialize=["tiles"])
def step_kernel(
    segments_ptr,  # int64 (n, SEGMENT_WIDTH)
    tile_segment_ptr,  # int32 (tiles): which segment a tile belongs to
    strides_ptr,  # of each strided segment the number of dimensions, then (size, param, grad stride), inner first
    all_scalars_ptr,  # float64 (rows, S_WIDTH)
    exp_avg_ptr,
    exp_avg_sq_ptr,
    tiles,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    COMPUTE: tl.constexpr,
    TILE: tl.constexpr,
    SLICE: tl.constexpr,
    ZERO_GRADS: tl.constexpr,
):
    """One step over every tile; TILE elements of a full tile at once, SLICE at a time of any other."""
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        segment_ptr = segments_ptr + tl.load(tile_segment_ptr + tile).to(tl.int64) * SEGMENT_WIDTH
        p_ptr = tl.load(segment_ptr + PARAM_ADDRESS).to(tl.pointer_type(PARAM))
        g_ptr = tl.load(segment_ptr + GRAD_ADDRESS).to(tl.pointer_type(GRAD))
        start = tl.load(segment_ptr + START)
        length = tl.load(segment_ptr + LENGTH)
        scalars_ptr = all_scalars_ptr + tl.load(segment_ptr + SCALAR_INDEX) * S_WIDTH
        offset = (tile - tl.load(segment_ptr + FIRST_TILE)) * TILE
        aligned = tl.load(segment_ptr + ALIGNED)
        # Segments start at multiples of 64 elements and tiles are whole, so the moments are always aligned.
        m_ptr = tl.multiple_of(exp_avg_ptr + start + offset, 16)
        v_ptr = tl.multiple_of(exp_avg_sq_ptr + start + offset, 16)

        # A tile of a step that is skipped counts as empty, which needs no further branch around the two paths.
        left = tl.where(tl.load(scalars_ptr + S_UPDATE_RULE) == SKIP_STEP, 0, tl.minimum(length - offset, TILE)).to(
            tl.int32
        )

        if (aligned != 0) & (left == TILE):
            lane = tl.arange(0, TILE)
            p_at = tl.multiple_of(p_ptr + offset, 16) + lane
            g_at = tl.multiple_of(g_ptr + offset, 16) + lane
            p = tl.load(p_at)
            g = tl.load(g_at)
            m = tl.load(m_ptr + lane)
            v = tl.load(v_ptr + lane)
            p_new, m, v = update(widen(p, COMPUTE), widen(g, COMPUTE), m, v, scalars_ptr, COMPUTE)
            tl.store(p_at, narrow(p_new, PARAM))
            tl.store(m_ptr + lane, m)
            tl.store(v_ptr + lane, v)
        else:
            strides_at = tl.load(segment_ptr + STRIDES_AT)
            # One element a thread at a time: address arithmetic in 64 bits for a whole tile would not fit in registers.
            for begin in range(0, left, SLICE):
                lane = begin + tl.arange(0, SLICE)
                inside = lane < left
                p_index = offset + lane
                g_index = p_index
                if strides_at >= 0:
                    p_index, g_index = strided(p_index, strides_ptr + strides_at)
                p = tl.load(p_ptr + p_index, mask=inside)
                g = tl.load(g_ptr + g_index, mask=inside)
                m = tl.load(m_ptr + lane, mask=inside)
                v = tl.load(v_ptr + lane, mask=inside)
                p_new, m, v = update(widen(p, COMPUTE), widen(g, COMPUTE), m, v, scalars_ptr, COMPUTE)
                tl.store(p_ptr + p_index, narrow(p_new, PARAM), mask=inside)
                tl.store(m_ptr + lane, m, mask=inside)
                tl.store(v_ptr + lane, v, mask=inside)

        if ZERO_GRADS:
            # Threads store other elements than they have loaded where parameter and gradient differ in width.
            tl.debug_barrier()
            zero(segment_ptr, tile, strides_ptr, GRAD, TILE, SLICE)
