"""A row: the float64 scalars that one (parameter group, step) pair gives to every element of its segments."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..cpp_helpers import write_scalars
from ..modes import real
from ..options import Checked
from ..rectification import KINDS, bias_correction, decay_rate, exact_variance, rectification, rho_inf

MOMENTUM, ADAPTIVE, HOLD, SKIP = 0.0, 1.0, 2.0, 3.0
"""What the update's direction d is: m; m / (sqrt(v) + eps); none, with the parameters staying as they are; or no step
at all: nothing is written but, where ``zero_grads`` asks for it, zeros in the gradients."""


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
    decay: float
    """What decoupled decay takes of a parameter, ``lr * weight_decay``; 0 without it."""
    alpha: float
    """``lr * r_t * sqrt(1 - beta2^t) / (1 - beta1^t)`` when rectified, ``lr / (1 - beta1^t)`` before."""
    grad_factor: float
    """Multiplies the gradient: the clip coefficient over the gradient scale, with the sign of ``maximize``."""
    direction: float
    """``MOMENTUM``, ``ADAPTIVE``, ``HOLD`` or ``SKIP``."""
    step: float
    """t, for stochastic rounding, which draws by step and seed."""
    seed: float


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
        decay=lr * decay if decoupled else 0.0,
        alpha=alpha,
        grad_factor=-1.0 if group["maximize"] else 1.0,
        direction=direction,
        step=float(t),
        seed=float(group["seed"]),
    )


class RowTable:
    """Room for the rows of every step of a plan, as a launch has read them when it returns.

    A list of numbers becomes an array in a tenth of the time that `torch.tensor` takes for it.
    """

    def __init__(self, rows: int) -> None:
        self._numbers = array("d", bytes(8 * max(rows, 1) * len(Row._fields)))
        self._address = self._numbers.buffer_info()[0]
        self._tensor = torch.frombuffer(self._numbers, dtype=torch.float64).view(-1, len(Row._fields))
        self._checked = Checked()

    def filled(self, groups: list[dict[str, Any]], rows: list[tuple[int, int]], taken: Tensor) -> Tensor:
        """The row of each (parameter group, segment), by their indices: `step_row`, or the same in C.

        Args:
            groups: the optimizer's ``param_groups``.
            rows: for each row its group, and a segment that takes this step with it.
            taken: float64, on the CPU: how many steps each segment has taken.

        Returns:
            float64 (rows, 11), on the CPU: overwritten by the next call.

        Raises:
            TypeError, ValueError: a hyperparameter that user code has written into a group since, and is not allowed.
        """
        if not write_scalars(self._address, groups, rows, taken.data_ptr()):
            self._checked.check(groups, sorted({index for index, _ in rows}))
            with real():
                counts = taken.tolist()
            made = [step_row(groups[index], int(counts[segment]) + 1) for index, segment in rows]
            self._numbers[:] = array("d", chain.from_iterable(made))
        return self._tensor


class Hyper(NamedTuple):
    """What a rows operator needs of a parameter group: float64, one line of its ``hyper`` table, in this order.

    All that does not depend on the step is computed here, so that a device has only to do what the host can do with the
    same bits: no logarithm, no power.
    """

    lr: float
    """Unless the operator is given a tensor of learning rates."""
    one_minus_beta1: float
    decay_rate1: float
    """``-log(beta1)``, infinite for 0."""
    beta2: float
    one_minus_beta2: float
    decay_rate2: float
    rho_inf: float
    limit_variance: float
    """Var[psi] at ``rho_inf`` by Theorem 1, under ``"exact"`` where it exists; 1 otherwise."""
    rho_threshold: float
    eps: float
    coupled_decay: float
    decoupled_decay: float
    sign: float
    """-1 for ``maximize``, else 1."""
    unrectified: float
    """The direction while ``rho_t`` is not above the threshold: ``MOMENTUM`` or ``HOLD``."""
    kind: float
    """The index of ``rectification`` in `KINDS`."""
    seed: float
    """What stochastic rounding draws by, beside the step."""


def hyper(group: Mapping[str, Any], lr: float) -> Hyper:
    """The line of a parameter group, with this learning rate."""
    (beta1, beta2), decay = group["betas"], group["weight_decay"]
    limit = rho_inf(beta2)
    rectified = group["rectification"] == "exact" and limit > group["rho_threshold"]
    return Hyper(
        lr=lr,
        one_minus_beta1=1.0 - beta1,
        decay_rate1=decay_rate(beta1),
        beta2=beta2,
        one_minus_beta2=1.0 - beta2,
        decay_rate2=decay_rate(beta2),
        rho_inf=limit,
        limit_variance=exact_variance(limit) if rectified else 1.0,
        rho_threshold=group["rho_threshold"],
        eps=group["eps"],
        coupled_decay=0.0 if group["decoupled_weight_decay"] else decay,
        decoupled_decay=decay if group["decoupled_weight_decay"] else 0.0,
        sign=-1.0 if group["maximize"] else 1.0,
        unrectified=MOMENTUM if group["degenerated_to_sgd"] else HOLD,
        kind=float(KINDS.index(group["rectification"])),
        seed=float(group["seed"]),
    )
