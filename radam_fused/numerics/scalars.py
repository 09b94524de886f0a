"""The scalars of a step: the float64 numbers that a (parameter group, step) pair gives to the elements of its segments.

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
"""The update rule, by which a step computes its direction d: m (UNRECTIFIED), m / (sqrt(v) + eps) (RECTIFIED), or none,
while the moments are updated (NO_PARAM_UPDATE). SKIP_STEP is no step at all: nothing is written but, under
``zero_grads``, zeros in the gradients. ``UpdateRule`` in csrc/numerics/radam_update.h."""


class StepScalars(NamedTuple):
    """One row of the tensor ``scalars`` that a launch reads: float64, rounded once to the dtype of the arithmetic.

    The names are those of the update (docs/design.md, the numeric contract), the columns of the tensor in this order:
    ``ScalarColumn`` in csrc/numerics/radam_update.h.
    """

    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    eps: float
    l2_decay: float
    """Weight decay that joins the gradient; 0 when there is none or it is decoupled."""
    decay_factor: float
    """What decoupled decay takes of a parameter, ``lr * weight_decay``; 0 without it."""
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
    """A buffer for the scalars of a plan, filled again in every step: a launch has read it when it returns.

    A list of numbers becomes an array in a tenth of the time that `torch.tensor` takes for it.
    """

    def __init__(self, rows: int) -> None:
        self._numbers = array("d", bytes(8 * max(rows, 1) * len(StepScalars._fields)))
        self._address = self._numbers.buffer_info()[0]
        self._tensor = torch.frombuffer(self._numbers, dtype=torch.float64).view(-1, len(StepScalars._fields))
        self._checked = Checked()

    def filled(self, groups: list[dict[str, Any]], rows: list[tuple[int, int]], taken: Tensor) -> Tensor:
        """The scalars of each (parameter group, segment), by their indices: `compute_scalars`, or the same in C.

        Args:
            groups: the optimizer's ``param_groups``.
            rows: for each row its group, and a segment whose parameter takes this step.
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
            made = [compute_scalars(groups[index], int(counts[segment]) + 1) for index, segment in rows]
            self._numbers[:] = array("d", chain.from_iterable(made))
        return self._tensor


class GroupScalars(NamedTuple):
    """What the scalars operator needs of a parameter group: a row of the float64 tensor ``group_scalars``.

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
