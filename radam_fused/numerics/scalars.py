"""The scalars of a step: the float64 numbers by which a parameter group, at a step count, updates its elements.

Must match csrc/numerics/scalars.h, backends/reference/scalars.py and backends/triton/scalars_kernel.py bit for bit.
"""

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

UNRECTIFIED, RECTIFIED, NO_PARAM_UPDATE, SKIP_STEP = 0.0, 1.0, 2.0, 3.0
"""The update rules. A step's direction d is m under UNRECTIFIED and m / (sqrt(v) + eps) under RECTIFIED. Under
NO_PARAM_UPDATE only the moments are updated. Under SKIP_STEP nothing is written, except zeros in the gradients with
``zero_grads``. Must match ``UpdateRule`` in csrc/numerics/radam_update.h."""


class StepScalars(NamedTuple):
    """A row of the float64 tensor ``scalars``; kernels round each number once to the dtype of the arithmetic.

    The names are those of the numeric contract (docs/design.md). The tensor's columns have this order; it must match
    ``ScalarColumn`` in csrc/numerics/radam_update.h.
    """

    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    eps: float
    l2_decay: float
    """Weight decay that is added to the gradient; 0 if there is none or it is decoupled."""
    decay_factor: float
    """The part of a parameter that decoupled decay subtracts, ``lr * weight_decay``; 0 without it."""
    step_size: float
    """``lr * r_t * sqrt(1 - beta2^t) / (1 - beta1^t)`` when rectified, ``lr / (1 - beta1^t)`` before."""
    grad_scale_factor: float
    """Multiplies the gradient: the clip coefficient over the gradient scale, with the sign of ``maximize``."""
    update_rule: float
    """``UNRECTIFIED``, ``RECTIFIED``, ``NO_PARAM_UPDATE`` or ``SKIP_STEP``."""
    step: float
    """t. Stochastic rounding uses random bits of this step and seed."""
    seed: float


COLUMNS = {name: column for column, name in enumerate(StepScalars._fields)}
UPDATE_RULE = COLUMNS["update_rule"]


def compute_scalars(group: Mapping[str, Any], t: int) -> StepScalars:
    """The scalars of a parameter group at step ``t`` (from 1), by algorithm 2 of the paper.

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
        step_size, update_rule = lr * r_t * root_c2 / c1, RECTIFIED
        if group["rectification"] == "none":  # Adam adds eps to sqrt(v / c2), RAdam to sqrt(v)
            eps = eps * root_c2
    elif group["degenerated_to_sgd"]:
        step_size, update_rule = lr / c1, UNRECTIFIED
    else:
        step_size, update_rule = 0.0, NO_PARAM_UPDATE

    decay = group["weight_decay"]
    decoupled = group["decoupled_weight_decay"]
    return StepScalars(
        one_minus_beta1=1.0 - beta1,
        beta2=beta2,
        one_minus_beta2=1.0 - beta2,
        eps=eps,
        l2_decay=0.0 if decoupled else decay,
        decay_factor=lr * decay if decoupled else 0.0,
        step_size=step_size,
        grad_scale_factor=-1.0 if group["maximize"] else 1.0,
        update_rule=update_rule,
        step=float(t),
        seed=float(group["seed"]),
    )


class ScalarBuffer:
    """A CPU buffer for the scalars of a plan. Every step fills it again: a launch has read it before it returns.

    Filling an ``array`` from a list takes a tenth of the time of `torch.tensor`.
    """

    def __init__(self, rows: int) -> None:
        self._numbers = array("d", bytes(8 * max(rows, 1) * len(StepScalars._fields)))
        self._address = self._numbers.buffer_info()[0]
        self._tensor = torch.frombuffer(self._numbers, dtype=torch.float64).view(-1, len(StepScalars._fields))
        self._checked = Checked()

    def filled(self, groups: list[dict[str, Any]], rows: list[tuple[int, int]], taken: Tensor) -> Tensor:
        """Computes the scalars of pairs of a parameter group and a step count, in C++ or by `compute_scalars`.

        Args:
            groups: the optimizer's ``param_groups``.
            rows: for each row the index of its group, and that of a segment whose step count it uses.
            taken: float64 (segments), on the CPU: how many steps each segment has taken.

        Returns:
            float64 (rows, 11), on the CPU; the next call overwrites it.

        Raises:
            TypeError, ValueError: user code has written a hyperparameter into a group that is not allowed.
        """
        if not write_scalars(self._address, groups, rows, taken.data_ptr()):
            self._checked.check(groups, sorted({index for index, _ in rows}))
            with real():
                counts = taken.tolist()
            made = [compute_scalars(groups[index], int(counts[segment]) + 1) for index, segment in rows]
            self._numbers[:] = array("d", chain.from_iterable(made))
        return self._tensor


class GroupScalars(NamedTuple):
    """What the operator **scalars** needs of a parameter group: a row of the float64 tensor ``group_scalars``.

    Whatever does not depend on the step is computed here, on the host: logarithms, for example. The device then uses
    only operations that give the same bits there.
    """

    lr: float
    """Ignored if the operator is given a tensor of learning rates."""
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
    l2_decay: float
    decoupled_decay: float
    sign: float
    """-1 for ``maximize``, else 1."""
    unrectified_rule: float
    """The update rule while ``rho_t`` is not above the threshold: ``UNRECTIFIED`` or ``NO_PARAM_UPDATE``."""
    kind: float
    """The index of ``rectification`` in `KINDS`."""
    seed: float
    """Of the random bits for stochastic rounding, with the step."""


def group_scalars(group: Mapping[str, Any], lr: float) -> GroupScalars:
    """The scalars of a parameter group at this learning rate, before its step is known."""
    (beta1, beta2), decay = group["betas"], group["weight_decay"]
    limit = rho_inf(beta2)
    rectified = group["rectification"] == "exact" and limit > group["rho_threshold"]
    return GroupScalars(
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
        l2_decay=0.0 if group["decoupled_weight_decay"] else decay,
        decoupled_decay=decay if group["decoupled_weight_decay"] else 0.0,
        sign=-1.0 if group["maximize"] else 1.0,
        unrectified_rule=UNRECTIFIED if group["degenerated_to_sgd"] else NO_PARAM_UPDATE,
        kind=float(KINDS.index(group["rectification"])),
        seed=float(group["seed"]),
    )
