"""The Triton kernel for low-precision state: the tile loop of step_kernel.py over state in fewer bits than float32.

The state format follows from the dtypes of the pointers, the format of the master buffer from MASTER. Must match
backends/reference/low_precision.py bit for bit.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

import triton
import triton.language as tl

from .constants import (
    ALIGNED,
    BLOCK,
    FIRST_TILE,
    GRAD_ADDRESS,
    LENGTH,
    MOMENT_STREAM,
    NO_PARAM_UPDATE,
    PARAM_ADDRESS,
    PARAM_STREAM,
    RNG_OFFSET,
    S_UPDATE_RULE,
    S_WIDTH,
    SCALAR_INDEX,
    SEGMENT_WIDTH,
    SKIP_STEP,
    START,
    STRIDES_AT,
)
from .quantization import (
    compensated,
    decode_first,
    decode_half_root,
    encode_first,
    encode_half_first,
    encode_half_root,
    encode_root,
    from_master,
    join,
    low_bits,
    octaves,
    random_bits,
    round_stochastic,
    spread,
    swap_bytes,
    to_parameter,
)
from .step_kernel import decrease, narrow, strided, update, update_moments, widen, zero


@triton.jit
def _read_moments(m_at, v_at, scale_at, blocks, inside, inside_blocks, COUNT: tl.constexpr):
    STORED: tl.constexpr = m_at.dtype.element_ty
    m = tl.load(m_at, mask=inside)
    v = tl.load(v_at, mask=inside)
    if STORED == tl.int8:
        in_octaves = octaves(v)
        root = in_octaves * spread(tl.load(scale_at + blocks, mask=inside_blocks), COUNT)
        m = decode_first(m, spread(tl.load(scale_at, mask=inside_blocks), COUNT), in_octaves)
        return m, root * root
    elif STORED == tl.float16:
        root = decode_half_root(v)
        return m.to(tl.float32) * root, root * root
    else:
        return widen(m, tl.float32), widen(v, tl.float32)


@triton.jit
def _write_moments(
    m,
    v,
    m_at,
    v_at,
    scale_at,
    blocks,
    inside,
    inside_blocks,
    rng_offset,
    scalars_ptr,
    COUNT: tl.constexpr,
    ANYWHERE: tl.constexpr,
):
    STORED: tl.constexpr = m_at.dtype.element_ty
    if STORED != tl.float32:
        rand16 = random_bits(rng_offset, scalars_ptr, MOMENT_STREAM, COUNT, ANYWHERE)
        if (STORED == tl.int8) | (STORED == tl.float16):
            v = tl.math.sqrt_rn(v)
    if STORED == tl.int8:
        v, root_scale, largest = encode_root(v, rand16, inside, COUNT)
        tl.store(scale_at + blocks, root_scale, mask=inside_blocks)
        m, first_scale = encode_first(m, v, largest, swap_bytes(rand16), inside, COUNT)
        tl.store(scale_at, first_scale, mask=inside_blocks)
        m = m.to(tl.int8)
        v = v.to(tl.uint8)
    elif STORED == tl.float16:
        v = encode_half_root(v, rand16)
        m = encode_half_first(m, decode_half_root(v), swap_bytes(rand16))
    elif STORED != tl.float32:
        m = round_stochastic(m, swap_bytes(rand16), STORED)
        v = round_stochastic(v, rand16, STORED)
    tl.store(m_at, m, mask=inside)
    tl.store(v_at, v, mask=inside)


@triton.jit
def _step_elements(
    p_at,
    g_at,
    place,
    rng_offset,
    count,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    scales_ptr,
    master_ptr,
    blocks,
    scalars_ptr,
    PARAM: tl.constexpr,
    MASTER: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    COUNT: tl.constexpr,
    ANYWHERE: tl.constexpr,
):
    """One step of the parameters at COUNT addresses: of the first ``count``, or of all where that is None.

    Their state starts at ``place``, their random bits at ``rng_offset``.
    """
    lane = tl.arange(0, COUNT)
    m_at = tl.multiple_of(exp_avg_ptr + place, 16) + lane
    v_at = tl.multiple_of(exp_avg_sq_ptr + place, 16) + lane
    block = tl.arange(0, COUNT // BLOCK)
    scale_at = None if scales_ptr is None else scales_ptr + place // BLOCK + block
    inside = None if count is None else lane < count
    inside_blocks = None if count is None else block * BLOCK < count

    p = tl.load(p_at, mask=inside)
    g = widen(tl.load(g_at, mask=inside), tl.float32)
    if MASTER is not None:
        master_at = tl.multiple_of(master_ptr + place, 16) + lane
        master = tl.load(master_at, mask=inside)
    if MASTER == "fp32":
        x = from_master(p, master, PARAM)
    elif MASTER == "split":
        x = join(p, master)
    elif MASTER == "kahan":
        x = widen(p, tl.float32) + widen(master, tl.float32)
    else:
        x = widen(p, tl.float32)
    m, v = _read_moments(m_at, v_at, scale_at, blocks, inside, inside_blocks, COUNT)

    if MASTER == "kahan":
        m, v, d = update_moments(x, g, m, v, scalars_ptr, tl.float32)
        taken = decrease(x, d, scalars_ptr, tl.float32)
        after, rest = compensated(p, widen(master, tl.float32), taken, PARAM)
    else:
        x, m, v = update(x, g, m, v, scalars_ptr, tl.float32)
        if MASTER is not None:
            after = to_parameter(x, PARAM)
        elif STOCHASTIC:
            after = round_stochastic(x, random_bits(rng_offset, scalars_ptr, PARAM_STREAM, COUNT, ANYWHERE), PARAM)
        else:
            after = narrow(x, PARAM)
    # What is written comes before the moments are encoded, which takes all the registers there are.
    held = tl.load(scalars_ptr + S_UPDATE_RULE) == NO_PARAM_UPDATE
    tl.store(p_at, tl.where(held, p, after), mask=inside)
    if MASTER == "fp32":
        tl.store(master_at, x, mask=inside)  # also a value that user code has written into the parameter
    elif MASTER == "split":
        tl.store(master_at, tl.where(held, master, low_bits(x)), mask=inside)
    elif MASTER == "kahan":
        tl.store(master_at, tl.where(held, master, rest), mask=inside)
    _write_moments(m, v, m_at, v_at, scale_at, blocks, inside, inside_blocks, rng_offset, scalars_ptr, COUNT, ANYWHERE)


@triton.jit(do_not_specialize=["tiles", "blocks"])
def low_precision_step_kernel(
    segments_ptr,  # tables as of `step_kernel`
    tile_segment_ptr,
    strides_ptr,
    all_scalars_ptr,
    exp_avg_ptr,  # float32, float16, bfloat16 as int16, or int8
    exp_avg_sq_ptr,  # the same, uint8 beside int8
    tiles,
    scales_ptr,  # float32 (2, blocks) of int8 moments, else None
    master_ptr,  # float32, int16, float16, or bfloat16 as int16; None without a master buffer
    blocks,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    MASTER: tl.constexpr,  # format of the master buffer: None, "fp32", "split" or "kahan"
    STOCHASTIC: tl.constexpr,
    TILE: tl.constexpr,  # both multiples of a block
    SLICE: tl.constexpr,
    ZERO_GRADS: tl.constexpr,
    ANYWHERE: tl.constexpr,  # whether random numbers of some segment begin at no multiple of 8
):
    """One step over every tile; TILE elements of a full tile at once, SLICE at a time of any other."""
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        segment_ptr = segments_ptr + tl.load(tile_segment_ptr + tile).to(tl.int64) * SEGMENT_WIDTH
        p_ptr = tl.load(segment_ptr + PARAM_ADDRESS).to(tl.pointer_type(PARAM))
        g_ptr = tl.load(segment_ptr + GRAD_ADDRESS).to(tl.pointer_type(GRAD))
        start = tl.load(segment_ptr + START)
        rng_offset = tl.load(segment_ptr + RNG_OFFSET)
        scalars_ptr = all_scalars_ptr + tl.load(segment_ptr + SCALAR_INDEX) * S_WIDTH
        offset = (tile - tl.load(segment_ptr + FIRST_TILE)) * TILE
        aligned = tl.load(segment_ptr + ALIGNED)
        # A tile of a skipped step counts as empty.
        left = tl.minimum(tl.load(segment_ptr + LENGTH) - offset, TILE)
        left = tl.where(tl.load(scalars_ptr + S_UPDATE_RULE) == SKIP_STEP, 0, left).to(tl.int32)

        if (aligned != 0) & (left == TILE):
            lane = tl.arange(0, TILE)
            _step_elements(
                tl.multiple_of(p_ptr + offset, 16) + lane,
                tl.multiple_of(g_ptr + offset, 16) + lane,
                start + offset,
                rng_offset + offset,
                None,
                exp_avg_ptr,
                exp_avg_sq_ptr,
                scales_ptr,
                master_ptr,
                blocks,
                scalars_ptr,
                PARAM,
                MASTER,
                STOCHASTIC,
                TILE,
                ANYWHERE,
            )
        else:
            strides_at = tl.load(segment_ptr + STRIDES_AT)
            for begin in range(0, left, SLICE):
                p_index = offset + begin + tl.arange(0, SLICE)
                g_index = p_index
                if strides_at >= 0:
                    p_index, g_index = strided(p_index, strides_ptr + strides_at)
                _step_elements(
                    p_ptr + p_index,
                    g_ptr + g_index,
                    start + offset + begin,
                    rng_offset + offset + begin,
                    left - begin,
                    exp_avg_ptr,
                    exp_avg_sq_ptr,
                    scales_ptr,
                    master_ptr,
                    blocks,
                    scalars_ptr,
                    PARAM,
                    MASTER,
                    STOCHASTIC,
                    SLICE,
                    ANYWHERE,
                )

        if ZERO_GRADS:
            # Threads store other elements than they have loaded where parameter and gradient differ in width.
            tl.debug_barrier()
            zero(segment_ptr, tile, strides_ptr, GRAD, TILE, SLICE)
