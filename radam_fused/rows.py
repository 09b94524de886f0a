"""A row: the float64 scalars that one (parameter group, step) pair gives to every element of its segments."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from .rectification import bias_correction, rectification

MOMENTUM, ADAPTIVE, HOLD = 0.0, 1.0, 2.0
"""What the update's direction d is: m; m / (sqrt(v) + eps); or none, with the parameters staying as they are."""


class Row(NamedTuple):
    """One row of the table that a launch reads: float64 here, rounded once to the dtype the pass computes in.

    The names are those of the update (docs/design.md, the numeric contract); ``rows`` tensors hold them in this order.
    """

    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    eps: float
    coupled_decay: float
    """Weight decay that joins the gradient; 0 when there is none or it is decoupled."""
    shrink: float
    """What decoupled decay leaves of a parameter, ``1 - lr * weight_decay``; 1 without it."""
    alpha: float
    """``lr * r_t * sqrt(1 - beta2^t) / (1 - beta1^t)`` when rectified, ``lr / (1 - beta1^t)`` before."""
    grad_factor: float
    """Multiplies the gradient; -1 for ``maximize``, as the sign costs no rounding."""
    direction: float
    """``MOMENTUM``, ``ADAPTIVE`` or ``HOLD``."""


def step_row(group: Mapping[str, Any], t: int) -> Row:
    """The row of a parameter group at step ``t`` (from 1), by algorithm 2 of the paper.

    Args:
        group: hyperparameters as ``param_groups`` holds them (``lr`` a float or a one-element tensor).
        t: how many steps these parameters will have taken after this one.
    """
    lr = float(group["lr"])
    beta1, beta2 = group["betas"]
    eps = group["eps"]
    c1 = bias_correction(t, beta1)
    r_t = rectification(t, beta2, group["rectification"], group["rho_threshold"])
    if r_t is not None:
        root_c2 = math.sqrt(bias_correction(t, beta2))
        alpha, direction = lr * r_t * root_c2 / c1, ADAPTIVE
        if group["rectification"] == "none":  # Adam adds eps to sqrt(v / c2), RAdam to sqrt(v)
            eps = eps * root_c2
    elif group["degenerated_to_sgd"]:
        alpha, direction = lr / c1, MOMENTUM
    else:
        alpha, direction = 0.0, HOLD

    decay = group["weight_decay"]
    decoupled = group["decoupled_weight_decay"]
    return Row(
        one_minus_beta1=1.0 - beta1,
        beta2=beta2,
        one_minus_beta2=1.0 - beta2,
        eps=eps,
        coupled_decay=0.0 if decoupled else decay,
        shrink=1.0 - lr * decay if decoupled else 1.0,
        alpha=alpha,
        grad_factor=-1.0 if group["maximize"] else 1.0,
        direction=direction,
    )
