"""The Triton kernel over stored forms: the same walk as triton_kernel.py, with state in fewer bits than the arithmetic.

Which form it is shows in what the pointers point to, and for what is kept beside the parameters in MASTER.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

import triton
import triton.language as tl

from .quantization import (
    BLOCK,
    FOR_MOMENTS,
    FOR_PARAMETER,
    compensated,
    decode_first,
    decode_root,
    draws,
    encode_first,
    encode_root,
    from_master,
    half_first,
    half_root,
    joined,
    low_bits,
    other,
    root_of_half,
    spread,
    stochastic,
    to_parameter,
)
from .step_kernel import (
    COLUMNS,
    NO_PARAM_UPDATE,
    ROW_COLUMNS,
    SKIP_STEP,
    decrease,
    narrow,
    strided,
    update,
    update_moments,
    widen,
    zero,
)


@triton.jit
def _read_moments(m_at, v_at, scale_at, blocks, inside, inside_blocks, COUNT: tl.constexpr):
    STORED: tl.constexpr = m_at.dtype.element_ty
    m = tl.load(m_at, mask=inside)
    v = tl.load(v_at, mask=inside)
    if STORED == tl.int8:
        root = decode_root(v, spread(tl.load(scale_at + blocks, mask=inside_blocks), COUNT))
        m = decode_first(m, spread(tl.load(scale_at, mask=inside_blocks), COUNT), root)
        return m, root * root
    elif STORED == tl.float16:
        root = root_of_half(v)
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
    drawn,
    row_ptr,
    COUNT: tl.constexpr,
    ANYWHERE: tl.constexpr,
):
    STORED: tl.constexpr = m_at.dtype.element_ty
    if STORED != tl.float32:
        draw = draws(drawn, row_ptr, FOR_MOMENTS, COUNT, ANYWHERE)
        if (STORED == tl.int8) | (STORED == tl.float16):
            v = tl.math.sqrt_rn(v)
    if STORED == tl.int8:
        v, root_scale = encode_root(v, draw, inside, COUNT)
        tl.store(scale_at + blocks, root_scale, mask=inside_blocks)
        root = decode_root(v, spread(root_scale, COUNT))
        m, first_scale = encode_first(m, root, other(draw), inside, COUNT)
        tl.store(scale_at, first_scale, mask=inside_blocks)
        m = m.to(tl.int8)
        v = v.to(tl.uint8)
    elif STORED == tl.float16:
        v = half_root(v, draw)
        m = half_first(m, root_of_half(v), other(draw))
    elif STORED != tl.float32:
        m = stochastic(m, other(draw), STORED)
        v = stochastic(v, draw, STORED)
    tl.store(m_at, m, mask=inside)
    tl.store(v_at, v, mask=inside)


@triton.jit
def _step_elements(
    p_at,
    g_at,
    place,
    drawn,
    count,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    scales_ptr,
    residue_ptr,
    blocks,
    row_ptr,
    PARAM: tl.constexpr,
    MASTER: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    COUNT: tl.constexpr,
    ANYWHERE: tl.constexpr,
):
    """One step of the parameters at COUNT addresses whose state begins at ``place``, and random numbers at ``drawn``.

    Of the first ``count``, or of all where that is None.
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
        residue_at = tl.multiple_of(residue_ptr + place, 16) + lane
        residue = tl.load(residue_at, mask=inside)
    if MASTER == "fp32":
        x = from_master(p, residue, PARAM)
    elif MASTER == "split":
        x = joined(p, residue)
    elif MASTER == "kahan":
        x = widen(p, tl.float32) + widen(residue, tl.float32)
    else:
        x = widen(p, tl.float32)
    m, v = _read_moments(m_at, v_at, scale_at, blocks, inside, inside_blocks, COUNT)

    if MASTER == "kahan":
        m, v, d = update_moments(x, g, m, v, row_ptr, tl.float32)
        taken = decrease(x, d, row_ptr, tl.float32)
        after, rest = compensated(p, widen(residue, tl.float32), taken, PARAM)
    else:
        x, m, v = update(x, g, m, v, row_ptr, tl.float32)
        if MASTER is not None:
            after = to_parameter(x, PARAM)
        elif STOCHASTIC:
            after = stochastic(x, draws(drawn, row_ptr, FOR_PARAMETER, COUNT, ANYWHERE), PARAM)
        else:
            after = narrow(x, PARAM)
    # What is written comes before the moments are encoded, which takes all the registers there are.
    held = tl.load(row_ptr + 8) == NO_PARAM_UPDATE
    tl.store(p_at, tl.where(held, p, after), mask=inside)
    if MASTER == "fp32":
        tl.store(residue_at, x, mask=inside)  # a step that holds takes over a parameter's new value
    elif MASTER == "split":
        tl.store(residue_at, tl.where(held, residue, low_bits(x)), mask=inside)
    elif MASTER == "kahan":
        tl.store(residue_at, tl.where(held, residue, rest), mask=inside)
    _write_moments(m, v, m_at, v_at, scale_at, blocks, inside, inside_blocks, drawn, row_ptr, COUNT, ANYWHERE)


@triton.jit(do_not_specialize=["tiles", "blocks"])
def stored_step_kernel(
    segments_ptr,  # tables as of `step_kernel`
    tile_segment_ptr,
    walks_ptr,
    rows_ptr,
    exp_avg_ptr,  # float32, float16, bfloat16 as int16, or int8
    exp_avg_sq_ptr,  # the same, uint8 beside int8
    tiles,
    scales_ptr,  # float32 (2, blocks) of int8 moments, else None
    residue_ptr,  # float32, int16, float16, or bfloat16 as int16; None where nothing is kept
    blocks,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    MASTER: tl.constexpr,  # which residue: None, "fp32", "split" or "kahan"
    STOCHASTIC: tl.constexpr,
    TILE: tl.constexpr,  # both multiples of a block
    SLICE: tl.constexpr,
    ZERO_GRADS: tl.constexpr,
    ANYWHERE: tl.constexpr,  # whether random numbers of some segment begin at no multiple of 8
):
    """One step over every tile; TILE elements of a full tile at once, SLICE at a time of any other."""
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        segment_ptr = segments_ptr + tl.load(tile_segment_ptr + tile).to(tl.int64) * COLUMNS
        p_ptr = tl.load(segment_ptr + 0).to(tl.pointer_type(PARAM))
        g_ptr = tl.load(segment_ptr + 1).to(tl.pointer_type(GRAD))
        start = tl.load(segment_ptr + 2)
        origin = tl.load(segment_ptr + 8)
        row_ptr = rows_ptr + tl.load(segment_ptr + 4) * ROW_COLUMNS
        offset = (tile - tl.load(segment_ptr + 5)) * TILE
        aligned = tl.load(segment_ptr + 6)
        left = tl.minimum(tl.load(segment_ptr + 3) - offset, TILE)
        left = tl.where(tl.load(row_ptr + 8) == SKIP_STEP, 0, left).to(
            tl.int32
        )  # a step that is skipped counts as empty

        if (aligned != 0) & (left == TILE):
            lane = tl.arange(0, TILE)
            _step_elements(
                tl.multiple_of(p_ptr + offset, 16) + lane,
                tl.multiple_of(g_ptr + offset, 16) + lane,
                start + offset,
                origin + offset,
                None,
                exp_avg_ptr,
                exp_avg_sq_ptr,
                scales_ptr,
                residue_ptr,
                blocks,
                row_ptr,
                PARAM,
                MASTER,
                STOCHASTIC,
                TILE,
                ANYWHERE,
            )
        else:
            walk = tl.load(segment_ptr + 7)
            for begin in range(0, left, SLICE):
                p_index = offset + begin + tl.arange(0, SLICE)
                g_index = p_index
                if walk >= 0:
                    p_index, g_index = strided(p_index, walks_ptr + walk)
                _step_elements(
                    p_ptr + p_index,
                    g_ptr + g_index,
                    start + offset + begin,
                    origin + offset + begin,
                    left - begin,
                    exp_avg_ptr,
                    exp_avg_sq_ptr,
                    scales_ptr,
                    residue_ptr,
                    blocks,
                    row_ptr,
                    PARAM,
                    MASTER,
                    STOCHASTIC,
                    SLICE,
                    ANYWHERE,
                )

        if ZERO_GRADS:
            # Threads store other elements than they have loaded where parameter and gradient differ in width.
            tl.debug_barrier()
            zero(segment_ptr, tile, walks_ptr, GRAD, TILE, SLICE)
