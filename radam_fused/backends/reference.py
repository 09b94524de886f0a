"""The ``reference`` backend: plain torch operations, one a line of the numeric contract. The oracle of all tests."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..checks import check_gradients, check_layouts, one_of_each
from ..layout import moment_strides
from ..rows import ADAPTIVE, HOLD, SKIP, Row


def unavailable() -> str | None:
    """Why this backend cannot run here, or None if it can: it always can."""
    return None


def step(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    segments: Tensor,
    row_of: Tensor,
    rows: Tensor,
    zero_grads: bool = False,
) -> None:
    """``radam_fused::step_reference``; arguments and errors as `radam_fused.ops` says."""
    check_layouts(params, segments, exp_avg.dtype)
    check_gradients(params, grads)
    zeroed = [one_of_each(grad.detach()) for grad in grads] if zero_grads else []
    on_host = rows.device.type == "cpu"  # elsewhere, to look at a row would be to wait for the device
    table = rows.tolist() if on_host else rows.to(exp_avg.dtype).unbind(0)
    update = update_by_host if on_host else update_by_device
    for param, grad, (start, _), index in zip(params, grads, segments.tolist(), row_of.tolist(), strict=True):
        strides = moment_strides(param)
        m = exp_avg.as_strided(param.shape, strides, start)
        v = exp_avg_sq.as_strided(param.shape, strides, start)
        update(param.detach(), grad.detach(), m, v, Row(*table[index]))
    for grad in zeroed:
        grad.zero_()


def update_by_host(param: Tensor, grad: Tensor, m: Tensor, v: Tensor, row: Row) -> None:
    """One parameter's update in place, in the moments' dtype; every line is one rounded operation, or several."""
    if row.direction == SKIP:
        return
    p = param.to(m.dtype)
    g = grad.to(m.dtype)
    if row.grad_factor != 1.0:
        g = g * row.grad_factor
    if row.coupled_decay != 0.0:
        g = g + p * row.coupled_decay
    m.copy_(m + (g - m) * row.one_minus_beta1)
    v.copy_(v * row.beta2 + (g * row.one_minus_beta2) * g)
    if row.direction == HOLD:
        return
    d = m / (square_root(v) + row.eps) if row.direction == ADAPTIVE else m
    param.copy_(p * row.shrink - d * row.alpha)


def update_by_device(param: Tensor, grad: Tensor, m: Tensor, v: Tensor, row: Any) -> None:
    """The same by a row of tensors with one element, of the moments' dtype; the device decides between the branches."""
    p = param.to(m.dtype)
    g = grad.to(m.dtype) * row.grad_factor
    g = torch.where(row.coupled_decay != 0.0, g + p * row.coupled_decay, g)
    m_next = m + (g - m) * row.one_minus_beta1
    v_next = v * row.beta2 + (g * row.one_minus_beta2) * g
    d = torch.where(row.direction == ADAPTIVE, m_next / (square_root(v_next) + row.eps), m_next)
    p_next = (p * row.shrink - d * row.alpha).to(param.dtype)
    skip = row.direction == SKIP
    m.copy_(torch.where(skip, m, m_next))
    v.copy_(torch.where(skip, v, v_next))
    param.copy_(torch.where(skip | (row.direction == HOLD), param, p_next))


def square_root(v: Tensor) -> Tensor:
    """The correctly rounded square root, as IEEE 754 asks; torch.sqrt on the CPU may be MKL's, off by one ulp at times.

    A float32's root lies further from the midpoint of two float32 than a float64 root's error, so rounding that twice
    is rounding it once. For float64 itself the C library has the correct one.
    """
    if v.dtype == torch.float32:
        return torch.sqrt(v.double()).float()
    if v.device.type != "cpu":
        return torch.sqrt(v)
    return v.clone().apply_(lambda x: math.sqrt(x) if x >= 0.0 else math.nan)
