"""The ``reference`` backend's scalars, in plain torch: a step's scalars when a device computes them.

Elementwise over the rows of ``scalars``, with the operations of `radam_fused.rectification` in their order, so that
host and device give the same bits. It never waits for the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...numerics.quantization import square_root
from ...numerics.scalars import NO_PARAM_UPDATE, RECTIFIED, SKIP_STEP, GroupScalars
from ...rectification import KINDS, SERIES, SERIES_FROM
from ..operator_args import ScalarsArgs
from ..operator_checks import check_scalars
from .grad_norm import tree_reduce


def scalars(args: ScalarsArgs) -> tuple[Tensor, Tensor]:
    """``radam_fused::scalars_reference``; arguments and results as `radam_fused.backends.ops` says."""
    check_scalars(args)
    group_scalars, sources, counted, steps, taken, lr, partial_sums, max_grad_norm, grad_scale, found_inf = args
    group, representative = sources.unbind(1)
    columns: Any = group_scalars[group].unbind(1)
    h: Any = GroupScalars(*columns)
    before = torch.where(steps == taken.float(), taken, steps.double())  # a count that user code has written
    t = before[representative] + 1.0
    rate = h.lr if lr is None else lr.double()[group]
    c1, c2 = one_minus_exp(t * h.decay_rate1), one_minus_exp(t * h.decay_rate2)
    adam = h.kind == float(KINDS.index("none"))
    rho_t = rho(t, c2, h)
    rectified = adam | (rho_t > h.rho_threshold)
    r_t = torch.where(adam, 1.0, rectification(rho_t, h))
    root_c2 = square_root(c2)
    held = torch.where(h.unrectified_rule == NO_PARAM_UPDATE, 0.0, rate / c1)
    step_size = torch.where(rectified, rate * r_t * root_c2 / c1, held)
    update_rule = torch.where(rectified, RECTIFIED, h.unrectified_rule)

    factor, norm = h.sign, torch.zeros((), dtype=torch.float64, device=group_scalars.device)
    scale = None if grad_scale is None else grad_scale.double().reshape(())
    if partial_sums is not None:
        for partial in tree_reduce(partial_sums):
            norm = norm + partial
        norm = square_root(norm)
        if scale is not None:
            norm = norm / scale
        # torch.nn.utils.clip_grad_norm_ writes a quotient, which torch computes as a reciprocal and a product.
        coefficient = (norm + 1e-6).reciprocal() * max_grad_norm
        factor = factor * torch.where(coefficient > 1.0, 1.0, coefficient)
    if scale is not None:
        factor = factor / scale
    counts = counted
    if found_inf is not None:
        skip = found_inf.reshape(()) != 0
        update_rule = torch.where(skip, SKIP_STEP, update_rule)
        counts = torch.where(skip, 0.0, counted)
    taken.copy_(before + counts)
    steps.copy_(taken)
    eps = torch.where(adam, h.eps * root_c2, h.eps)
    row = [h.one_minus_beta1, h.beta2, h.one_minus_beta2, eps, h.l2_decay]
    row += [rate * h.decoupled_decay, step_size, factor, update_rule, t, h.seed]
    return torch.stack(row, dim=1), norm


def one_minus_exp(y: Tensor) -> Tensor:
    """`radam_fused.rectification.one_minus_exp`."""
    half = y.clamp(max=40.0) * 0.0078125
    square = half * half
    tail = torch.full_like(y, 13.0)
    for odd in (11.0, 9.0, 7.0, 5.0, 3.0, 1.0):
        tail = odd + square / tail
    tanh = half / tail
    e = 2.0 * tanh / (1.0 + tanh)
    for _ in range(6):
        e = e + e * (1.0 - e)
    return e


def _langevin(y: Tensor) -> Tensor:
    square = y * y
    tail = torch.full_like(y, 21.0)
    for odd in (19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0):
        tail = odd + square / tail
    return y / tail


def rho(t: Tensor, c2: Tensor, h: Any) -> Tensor:
    """`radam_fused.rectification.rho`, with ``c2 = 1 - beta2^t`` and a `GroupScalars` of columns."""
    y = t * h.decay_rate2
    early = t + _langevin(0.5 * h.decay_rate2) - t * _langevin(0.5 * y)
    late = h.rho_inf - 2.0 * t * ((1.0 - c2) / c2)
    return torch.where(y < 2.0, early, late)


def rectification(rho_t: Tensor, h: Any) -> Tensor:
    """r_t, first-order or exact; meaningless where ``rho_t`` is not above the threshold."""
    limit = h.rho_inf
    first_order = ((rho_t - 4.0) / (limit - 4.0)) * ((rho_t - 2.0) / (limit - 2.0)) * (limit / rho_t)
    exact = h.limit_variance / _exact_variance(rho_t)
    return square_root(torch.where(h.kind == float(KINDS.index("exact")), exact, first_order))


def _exact_variance(rho: Tensor) -> Tensor:
    """`radam_fused.rectification.exact_variance` for rho > 4, whose recurrence is then at most 23 steps long."""
    steps = ((SERIES_FROM - rho) / 2.0).clamp(min=0.0).ceil()
    at = rho + 2.0 * steps
    tail = torch.zeros_like(rho)
    for coefficient in reversed(SERIES):
        tail = (tail + coefficient) / at
    value = (1.0 + tail) / (2.0 * at)
    for k in range(22, -1, -1):
        at = rho + 2.0 * k
        before = at / ((at - 1.0) * (at - 1.0)) * (1.0 / (at - 2.0) + value * (at / (at + 2.0)) * at)
        value = torch.where(k < steps, before, value)
    return value
