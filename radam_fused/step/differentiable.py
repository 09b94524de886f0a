"""``differentiable=True``: the update as ordinary torch operations, through which autograd runs (for meta-learning).

It keeps what a backward pass will need, so there is nothing to fuse: each parameter has its own state, and the moments
of a step are new tensors. The lines are the numeric contract's (docs/design.md), as in backends/reference/.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..numerics.scalars import NO_PARAM_UPDATE, RECTIFIED, compute_scalars
from ..numerics.tensor_checks import check_parameter, group_names
from ..options import check_all


def step(groups: list[dict[str, Any]], state: dict[Tensor, dict[str, Any]], zero_grads: bool) -> None:
    """One step of every parameter with a gradient, recorded by autograd; parameters that require it are no leaves.

    A tensor ``lr`` may require a gradient as well: it reaches the update as ``lr`` times what is left of the step size.

    Raises:
        TypeError, ValueError: a hyperparameter that is not allowed; nothing was written.
    """
    check_all(groups, True)
    for index, group in enumerate(groups):
        for p, name in zip(group["params"], group_names(group, index), strict=True):
            if p.grad is not None and not state[p]:
                check_parameter(p, name)
    for group in groups:
        for p in group["params"]:
            if p.grad is None:
                continue
            entry = state[p]
            if not entry:
                entry["step"] = torch.tensor(0.0, dtype=torch.float32, device="cpu")
                entry["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                entry["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            entry["step"] += 1
            _update(p, entry, group, int(entry["step"]))
            if zero_grads:
                p.grad = torch.zeros_like(p.grad)


def _update(p: Tensor, entry: dict[str, Any], group: dict[str, Any], t: int) -> None:
    lr = group["lr"]
    row = compute_scalars({**group, "lr": 1.0}, t)
    assert p.grad is not None
    g = _real(p.grad) * row.grad_scale_factor
    value = _real(p).clone()  # autograd may save it, and p is written in place
    if row.l2_decay != 0.0:
        g = g + value * row.l2_decay
    m, v = _real(entry["exp_avg"]), _real(entry["exp_avg_sq"])
    m = m + (g - m) * row.one_minus_beta1
    square = (g * row.one_minus_beta2) * g
    v = v + (square - v * row.one_minus_beta2) if row.beta2 >= 0.5 else v * row.beta2 + square
    entry["exp_avg"], entry["exp_avg_sq"] = _like(p, m), _like(p, v)
    if row.update_rule == NO_PARAM_UPDATE:
        return
    d = m / (v.sqrt() + row.eps) if row.update_rule == RECTIFIED else m
    taken = d * (lr * row.step_size)
    decay = group["weight_decay"] if group["decoupled_weight_decay"] else 0.0
    if decay != 0.0 and (isinstance(lr, Tensor) or lr * decay != 0.0):
        taken = value * (lr * decay) + taken
    p.copy_(_like(p, value - taken))


def _real(tensor: Tensor) -> Tensor:
    """As `radam_fused.numerics.layout.as_real`, which takes memory to step, but within autograd's graph: no detach."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _like(p: Tensor, real: Tensor) -> Tensor:
    return torch.view_as_complex(real) if p.is_complex() else real
