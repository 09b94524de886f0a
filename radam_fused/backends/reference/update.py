"""The ``reference`` backend's update: one plain torch operation per line of the numeric contract (docs/design.md)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...numerics.quantization import square_root
from ...numerics.scalars import NO_PARAM_UPDATE, RECTIFIED, SKIP_STEP, StepScalars


def update_by_host(param: Tensor, grad: Tensor, m: Tensor, v: Tensor, row: StepScalars) -> None:
    """One parameter's update in place, in the moments' dtype; every line is one rounded operation, or several.

    The scalars are numbers, so a line that is not needed is not computed. Its mirror is `update_by_device`.
    """
    if row.update_rule == SKIP_STEP:
        return
    p = param.to(m.dtype)
    g = grad.to(m.dtype)
    if row.grad_scale_factor != 1.0:
        g = g * row.grad_scale_factor
    if row.l2_decay != 0.0:
        g = g + p * row.l2_decay
    m.copy_(m + (g - m) * row.one_minus_beta1)
    square = (g * row.one_minus_beta2) * g
    if row.beta2 >= 0.5:
        v.copy_(v + (square - v * row.one_minus_beta2))
    else:
        v.copy_(v * row.beta2 + square)
    if row.update_rule == NO_PARAM_UPDATE:
        return
    d = m / (square_root(v) + row.eps) if row.update_rule == RECTIFIED else m
    if row.decay_factor != 0.0:
        param.copy_(p - (p * row.decay_factor + d * row.step_size))
    else:
        param.copy_(p - d * row.step_size)


def update_by_device(param: Tensor, grad: Tensor, m: Tensor, v: Tensor, row: Any) -> None:
    """`update_by_host` with one-element tensors of the moments' dtype as scalars, which the host must not wait for.

    Both results of a branch are computed and `torch.where` selects one, so the two cannot share their lines.
    """
    p = param.to(m.dtype)
    m_next, v_next, d = update_moments(p, grad.to(m.dtype), m, v, row)
    p_next = (p - decrease(p, d, row)).to(param.dtype)
    skip = row.update_rule == SKIP_STEP
    m.copy_(torch.where(skip, m, m_next))
    v.copy_(torch.where(skip, v, v_next))
    param.copy_(torch.where(skip | (row.update_rule == NO_PARAM_UPDATE), param, p_next))


def update_moments(p: Tensor, g: Tensor, m: Tensor, v: Tensor, row: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Both moments after the step, and its direction d; ``row`` has one-element tensors."""
    g = g * row.grad_scale_factor
    g = torch.where(row.l2_decay != 0.0, g + p * row.l2_decay, g)
    m = m + (g - m) * row.one_minus_beta1
    square = (g * row.one_minus_beta2) * g
    by_difference = v + (square - v * row.one_minus_beta2)
    v = torch.where(row.beta2 >= 0.5, by_difference, v * row.beta2 + square)
    return m, v, torch.where(row.update_rule == RECTIFIED, m / (square_root(v) + row.eps), m)


def decrease(p: Tensor, d: Tensor, row: Any) -> Tensor:
    """What the step subtracts from the parameter. Without decay there is no product with it: inf times 0 is NaN."""
    return torch.where(row.decay_factor != 0.0, p * row.decay_factor + d * row.step_size, d * row.step_size)
