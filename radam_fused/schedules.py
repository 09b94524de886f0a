"""Warm-ups that need no tuning, as torch learning-rate schedulers for Adam: Ma & Yarats' two, and RAdam's own r_t.

Each is a function of the step ``t`` (from 1) and of ``beta2``, and a scheduler that multiplies every group's initial
learning rate by it, with the betas of that group. A scheduler is made after the optimizer and before its first step,
and its ``step()`` is called after each ``optimizer.step()``: the step number ``t`` then takes ``factor(t, beta2)``. For
a warm-up with a decay after it use `torch.optim.lr_scheduler.SequentialLR`; for their product, ``LambdaLR`` with the
function, as in ``LambdaLR(opt, lambda epoch: untuned_linear(epoch + 1, 0.999) * decay(epoch))``.

What `RectifiedWarmup` on Adam has in common with RAdam: `FusedRAdam(..., degenerated_to_sgd=False)` steps by
``lr r_t sqrt(c2) / c1 * m / (sqrt(v) + eps)``, Adam under this schedule by
``lr r_t sqrt(c2) / c1 * m / (sqrt(v) + eps sqrt(c2))`` with ``c2 = 1 - beta2^t``. They are equal for eps = 0 (up to
rounding, and up to 0/0 in Adam where a gradient has always been zero). Otherwise RAdam's step of an element is shorter
than Adam's from the same moments by the part ``eps (1 - sqrt(c2)) / (sqrt(v) + eps)`` of the latter. Coupled weight
decay keeps that; decoupled decay does not: AdamW scales it with the scheduled learning rate, RAdam with the plain one.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .rectification import rectification, rho_inf

__all__ = [
    "RectifiedWarmup",
    "UntunedExponentialWarmup",
    "UntunedLinearWarmup",
    "rectified",
    "untuned_exponential",
    "untuned_linear",
]


def _check(t: float, beta2: float) -> None:
    if not t >= 1:
        raise ValueError(f"t = {t!r}: a step count starts at 1")
    rho_inf(beta2)  # raises for a beta2 out of range


def untuned_linear(t: float, beta2: float) -> float:
    """``min(1, t (1 - beta2) / 2)`` (Ma & Yarats, arXiv 1910.04209): linear over 2 / (1 - beta2) steps.

    Raises:
        ValueError: ``t`` below 1 or ``beta2`` outside [0, 1).
    """
    _check(t, beta2)
    return min(1.0, 0.5 * (1.0 - beta2) * t)


def untuned_exponential(t: float, beta2: float) -> float:
    """``1 - exp(-(1 - beta2) t)`` (Ma & Yarats): their other warm-up, with a time constant of 1 / (1 - beta2) steps.

    Raises:
        ValueError: ``t`` below 1 or ``beta2`` outside [0, 1).
    """
    _check(t, beta2)
    return -math.expm1(-(1.0 - beta2) * t)


def rectified(t: float, beta2: float, kind: str = "first_order", threshold: float = 5.0) -> float:
    """r_t where ``rho_t > threshold``, else 0: what RAdam without its SGD phase makes of Adam's learning rate.

    Args:
        t: the step, from 1.
        beta2: decay of the second moment, in [0, 1).
        kind: ``"first_order"``, ``"exact"`` or ``"none"`` (then always 1), as `FusedRAdam`'s ``rectification``.
        threshold: as `FusedRAdam`'s ``rho_threshold``.

    Raises:
        ValueError: an argument out of its range.
    """
    r = rectification(t, beta2, kind, threshold)
    return 0.0 if r is None else r


def _beta2(group: dict[str, Any]) -> float:
    if "betas" not in group:
        raise ValueError("these warm-ups follow from beta2, and a group of this optimizer has no 'betas'")
    return float(group["betas"][1])


class _Warmup(LRScheduler):
    """The initial learning rates, each times a factor of the step and of its group's beta2."""

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        for group in optimizer.param_groups:
            _check(1, _beta2(group))
        super().__init__(optimizer, last_epoch)

    def factor(self, t: int, beta2: float) -> float:
        """What the step number ``t`` takes of the learning rate."""
        raise NotImplementedError

    def get_lr(self) -> list[float | Tensor]:
        """Each group's learning rate for the step that comes next."""
        t = self.last_epoch + 1
        groups = self.optimizer.param_groups
        return [lr * self.factor(t, _beta2(g)) for lr, g in zip(self.base_lrs, groups, strict=True)]


class UntunedLinearWarmup(_Warmup):
    """`untuned_linear` as a scheduler: 2 / (1 - beta2) steps, and the full learning rate from then on.

    Args:
        optimizer: Adam, AdamW or whatever has ``betas`` in its groups.
        last_epoch: as of every torch scheduler: how many steps were made, less the first; -1 starts from the beginning.

    Raises:
        ValueError: a group without betas, or with a beta2 outside [0, 1).
    """

    def factor(self, t: int, beta2: float) -> float:
        """`untuned_linear`."""
        return untuned_linear(t, beta2)


class UntunedExponentialWarmup(_Warmup):
    """`untuned_exponential` as a scheduler.

    Args:
        optimizer: Adam, AdamW or whatever has ``betas`` in its groups.
        last_epoch: as of every torch scheduler: how many steps were made, less the first; -1 starts from the beginning.

    Raises:
        ValueError: a group without betas, or with a beta2 outside [0, 1).
    """

    def factor(self, t: int, beta2: float) -> float:
        """`untuned_exponential`."""
        return untuned_exponential(t, beta2)


class RectifiedWarmup(_Warmup):
    """`rectified` as a scheduler: Adam under it is RAdam without its SGD phase, but for where eps stands (see above).

    Args:
        optimizer: Adam, or AdamW, or whatever has ``betas`` in its groups.
        kind: ``"first_order"`` (the paper's), ``"exact"`` or ``"none"``.
        threshold: the learning rate is 0 until ``rho_t`` exceeds this; at least 4.
        last_epoch: as of every torch scheduler: how many steps were made, less the first; -1 starts from the beginning.

    Raises:
        ValueError: a group without betas, a beta2 outside [0, 1), an unknown kind or a threshold below 4.
    """

    def __init__(
        self, optimizer: Optimizer, kind: str = "first_order", threshold: float = 5.0, last_epoch: int = -1
    ) -> None:
        rectified(1, 0.0, kind, threshold)  # raises for what is not allowed
        self.kind = kind
        self.threshold = threshold
        super().__init__(optimizer, last_epoch)

    def factor(self, t: int, beta2: float) -> float:
        """`rectified`, with this scheduler's kind and threshold."""
        return rectified(t, beta2, self.kind, self.threshold)
