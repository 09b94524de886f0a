"""The Triton kernel that computes the scalars of a step, from counts and a norm that are on the device.

The formulas are those of `radam_fused.rectification`, operation by operation in its order, in float64: sums, products,
quotients and roots, each rounded by itself, so that a device finds the scalars that the host would have found.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

import triton
import triton.language as tl

from .constants import (
    ADAM,
    EXACT,
    G_BETA2,
    G_DECAY_RATE1,
    G_DECAY_RATE2,
    G_DECOUPLED_DECAY,
    G_EPS,
    G_KIND,
    G_L2_DECAY,
    G_LIMIT_VARIANCE,
    G_LR,
    G_ONE_MINUS_BETA1,
    G_ONE_MINUS_BETA2,
    G_RHO_INF,
    G_RHO_THRESHOLD,
    G_SEED,
    G_SIGN,
    G_UNRECTIFIED_RULE,
    G_WIDTH,
    LANES,
    NO_PARAM_UPDATE,
    RECTIFIED,
    S_BETA2,
    S_DECAY_FACTOR,
    S_EPS,
    S_GRAD_SCALE_FACTOR,
    S_L2_DECAY,
    S_ONE_MINUS_BETA1,
    S_ONE_MINUS_BETA2,
    S_SEED,
    S_STEP,
    S_STEP_SIZE,
    S_UPDATE_RULE,
    S_WIDTH,
    SERIES,
    SERIES_FROM,
    SKIP_STEP,
    TERMS,
)
from .grad_norm_kernel import tree_reduce

RECURRENCE = tl.constexpr(23)
"""Steps of the exact variance's recurrence at most: from 50 down to 4, by two."""


@triton.jit
def _one_minus_exp(y):
    half = tl.minimum(y, 40.0) * 0.0078125
    square = half * half
    tail = tl.full(y.shape, 13.0, tl.float64)
    for k in tl.static_range(6):
        tail = (11.0 - 2.0 * k) + square / tail
    tanh = half / tail
    e = 2.0 * tanh / (1.0 + tanh)
    for _ in tl.static_range(6):
        e = e + e * (1.0 - e)
    return e


@triton.jit
def _langevin(y):
    square = y * y
    tail = tl.full(y.shape, 21.0, tl.float64)
    for k in tl.static_range(9):
        tail = (19.0 - 2.0 * k) + square / tail
    return y / tail


@triton.jit
def _rho(t, x, c2, rho_inf):
    y = t * x
    early = t + _langevin(0.5 * x) - t * _langevin(0.5 * y)
    late = rho_inf - 2.0 * t * ((1.0 - c2) / c2)
    return tl.where(y < 2.0, early, late)


@triton.jit
def _exact_variance(rho):
    steps = tl.ceil(tl.maximum((tl.full(rho.shape, SERIES_FROM, tl.float64) - rho) / 2.0, 0.0))
    at = rho + 2.0 * steps
    tail = tl.zeros_like(rho)
    for term in tl.static_range(TERMS):
        tail = (tail + SERIES[term]) / at
    value = (1.0 + tail) / (2.0 * at)
    for done in range(RECURRENCE):
        k = tl.cast(RECURRENCE - 1 - done, tl.float64)
        at = rho + 2.0 * k
        before = at / ((at - 1.0) * (at - 1.0)) * (1.0 / (at - 2.0) + value * (at / (at + 2.0)) * at)
        value = tl.where(k < steps, before, value)
    return value


@triton.jit
def _rectification(rho_t, limit, limit_variance, kind):
    first_order = ((rho_t - 4.0) / (limit - 4.0)) * ((rho_t - 2.0) / (limit - 2.0)) * (limit / rho_t)
    quotient = first_order
    if tl.max((kind == EXACT).to(tl.int32), 0) > 0:  # a long chain of divisions, which most models do without
        quotient = tl.where(kind == EXACT, limit_variance / _exact_variance(rho_t), first_order)
    return tl.sqrt(quotient)


@triton.jit
def _norm(partial_sums_ptr, buckets):
    """The root of all partial sums: each line by the tree, then the lines in order."""
    total = tl.full([], 0.0, tl.float64)
    for k in range(buckets):
        total += tree_reduce(tl.load(partial_sums_ptr + k * LANES + tl.arange(0, LANES)))
    return tl.sqrt(total)


@triton.jit
def _taken(steps_ptr, taken_ptr, segment, inside):
    """Steps taken so far: the exact count, unless user code has written another into the float32 that shows it."""
    shown = tl.load(steps_ptr + segment, mask=inside, other=0.0)
    taken = tl.load(taken_ptr + segment, mask=inside, other=0.0)
    return tl.where(shown == taken.to(tl.float32), taken, shown.to(tl.float64))


@triton.jit(do_not_specialize=["lr_stride", "row_count", "segment_count", "buckets"])
def scalars_kernel(
    group_scalars_ptr,  # float64 (groups, G_WIDTH)
    sources_ptr,  # int64 (row_count, 2): group, and the segment whose step count the row uses
    counted_ptr,  # float32 (segment_count)
    steps_ptr,  # float32 (segment_count), written
    taken_ptr,  # float64 (segment_count), written
    lr_ptr,  # float32 or float64 (groups), or None
    lr_stride,
    partial_sums_ptr,  # float64 (buckets, LANES), or None
    max_grad_norm: tl.float64,
    grad_scale_ptr,  # float32, or None
    found_inf_ptr,  # float32, or None
    scalars_ptr,  # float64 (row_count, S_WIDTH), written
    norm_ptr,  # float64, written
    row_count: tl.int32,
    segment_count: tl.int32,
    buckets: tl.int32,
    BLOCK: tl.constexpr,
    COUNT_BLOCK: tl.constexpr,
):
    """One program: BLOCK rows at a time, then the counts of COUNT_BLOCK segments at a time."""
    norm = tl.full([], 0.0, tl.float64)
    clip = tl.full([], 1.0, tl.float64)
    if partial_sums_ptr is not None:
        norm = _norm(partial_sums_ptr, buckets)
        if grad_scale_ptr is not None:
            norm = norm / tl.load(grad_scale_ptr).to(tl.float64)
        # torch.nn.utils.clip_grad_norm_ writes a quotient, which torch computes as a reciprocal and a product.
        coefficient = 1.0 / (norm + 1e-6) * max_grad_norm
        clip = tl.where(coefficient > 1.0, 1.0, coefficient)  # a NaN stays one
    tl.store(norm_ptr, norm)
    skip = False
    if found_inf_ptr is not None:
        skip = tl.load(found_inf_ptr) != 0.0

    for begin in range(0, row_count, BLOCK):
        row = begin + tl.arange(0, BLOCK)
        inside = row < row_count
        group = tl.load(sources_ptr + 2 * row, mask=inside, other=0)
        representative = tl.load(sources_ptr + 2 * row + 1, mask=inside, other=0)
        h = group_scalars_ptr + group * G_WIDTH
        if lr_ptr is None:
            lr = tl.load(h + G_LR, mask=inside, other=0.0)
        else:
            lr = tl.load(lr_ptr + group * lr_stride, mask=inside, other=0.0).to(tl.float64)
        x1 = tl.load(h + G_DECAY_RATE1, mask=inside, other=1.0)
        x2 = tl.load(h + G_DECAY_RATE2, mask=inside, other=1.0)
        rho_inf = tl.load(h + G_RHO_INF, mask=inside, other=1.0)
        limit_variance = tl.load(h + G_LIMIT_VARIANCE, mask=inside, other=1.0)
        rho_threshold = tl.load(h + G_RHO_THRESHOLD, mask=inside, other=1.0)
        eps = tl.load(h + G_EPS, mask=inside, other=0.0)
        decoupled_decay = tl.load(h + G_DECOUPLED_DECAY, mask=inside, other=0.0)
        factor = tl.load(h + G_SIGN, mask=inside, other=1.0)
        unrectified = tl.load(h + G_UNRECTIFIED_RULE, mask=inside, other=0.0)
        kind = tl.load(h + G_KIND, mask=inside, other=0.0)

        t = _taken(steps_ptr, taken_ptr, representative, inside) + 1.0
        c1 = _one_minus_exp(t * x1)
        c2 = _one_minus_exp(t * x2)
        root_c2 = tl.sqrt(c2)
        rho_t = _rho(t, x2, c2, rho_inf)
        adam = kind == ADAM
        rectified = adam | (rho_t > rho_threshold)
        r_t = tl.where(adam, 1.0, _rectification(rho_t, rho_inf, limit_variance, kind))
        held = tl.where(unrectified == NO_PARAM_UPDATE, 0.0, lr / c1)
        update_rule = tl.where(rectified, RECTIFIED, unrectified)
        if partial_sums_ptr is not None:
            factor = factor * clip
        if grad_scale_ptr is not None:
            factor = factor / tl.load(grad_scale_ptr).to(tl.float64)

        to = scalars_ptr + row * S_WIDTH
        tl.store(to + S_ONE_MINUS_BETA1, tl.load(h + G_ONE_MINUS_BETA1, mask=inside), mask=inside)
        tl.store(to + S_BETA2, tl.load(h + G_BETA2, mask=inside), mask=inside)
        tl.store(to + S_ONE_MINUS_BETA2, tl.load(h + G_ONE_MINUS_BETA2, mask=inside), mask=inside)
        tl.store(to + S_EPS, tl.where(adam, eps * root_c2, eps), mask=inside)
        tl.store(to + S_L2_DECAY, tl.load(h + G_L2_DECAY, mask=inside), mask=inside)
        tl.store(to + S_DECAY_FACTOR, lr * decoupled_decay, mask=inside)
        tl.store(to + S_STEP_SIZE, tl.where(rectified, lr * r_t * root_c2 / c1, held), mask=inside)
        tl.store(to + S_GRAD_SCALE_FACTOR, factor, mask=inside)
        tl.store(to + S_UPDATE_RULE, tl.where(skip, SKIP_STEP, update_rule), mask=inside)
        tl.store(to + S_STEP, t, mask=inside)
        tl.store(to + S_SEED, tl.load(h + G_SEED, mask=inside), mask=inside)

    # Another thread may count a row's representative segment: every row has read its count before any count goes up.
    tl.debug_barrier()
    for begin in range(0, segment_count, COUNT_BLOCK):
        segment = begin + tl.arange(0, COUNT_BLOCK)
        inside = segment < segment_count
        counted = tl.load(counted_ptr + segment, mask=inside, other=0.0).to(tl.float64)
        taken = _taken(steps_ptr, taken_ptr, segment, inside) + tl.where(skip, 0.0, counted)
        tl.store(taken_ptr + segment, taken, mask=inside)
        tl.store(steps_ptr + segment, taken.to(tl.float32), mask=inside)
