"""Learning-rate warm-ups for Adam that need no tuning, as torch schedulers: two by Ma & Yarats, and RAdam's own r_t.

Each warm-up is a function of the step ``t`` (from 1) and of ``beta2``, and a scheduler that multiplies each group's
initial learning rate by that function of the group's beta2. Make the scheduler after the optimizer and before its first
step, and call its ``step()`` after each ``optimizer.step()``: step ``t`` then has ``factor(t, beta2)``. For a warm-up
that is followed by a decay use `torch.optim.lr_scheduler.SequentialLR`. For the product of both use ``LambdaLR`` with
the function: ``LambdaLR(opt, lambda epoch: untuned_linear(epoch + 1, 0.999) * decay(epoch))``.

`RectifiedWarmup` on Adam compared with RAdam: `FusedRAdam(..., degenerated_to_sgd=False)` steps by
``lr r_t sqrt(c2) / c1 * m / (sqrt(v) + eps)``, Adam under this schedule by
``lr r_t sqrt(c2) / c1 * m / (sqrt(v) + eps sqrt(c2))``, with ``c1 = 1 - beta1^t`` and ``c2 = 1 - beta2^t``. They are
equal for eps = 0, up to rounding, and up to 0/0 in Adam for an element whose gradient has always been zero. Otherwise
RAdam's step of an element is shorter than Adam's from the same moments, by ``eps (1 - sqrt(c2)) / (sqrt(v) + eps)`` of
Adam's. With coupled weight decay the same holds. With decoupled decay it does not: AdamW multiplies the decay by the
scheduled learning rate, RAdam by the unscheduled one.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .rectification import Kind, check_kind, check_step, rectification

__all__ = [
    "RectifiedWarmup",
    "UntunedExponentialWarmup",
    "UntunedLinearWarmup",
    "rectified",
    "untuned_exponential",
    "untuned_linear",
]


def untuned_linear(t: float, beta2: float) -> float:
    """``min(1, t (1 - beta2) / 2)`` (Ma & Yarats, arXiv 1910.04209): linear over 2 / (1 - beta2) steps.

    Raises:
        ValueError: ``t`` below 1 or ``beta2`` outside [0, 1).
    """
    check_step(t, beta2)
    return min(1.0, 0.5 * (1.0 - beta2) * t)


def untuned_exponential(t: float, beta2: float) -> float:
    """``1 - exp(-(1 - beta2) t)`` (Ma & Yarats): their other warm-up, with a time constant of 1 / (1 - beta2) steps.

    Raises:
        ValueError: ``t`` below 1 or ``beta2`` outside [0, 1).
    """
    check_step(t, beta2)
    return -math.expm1(-(1.0 - beta2) * t)


def rectified(t: float, beta2: float, kind: Kind = "first_order", threshold: float = 5.0) -> float:
    """r_t if ``rho_t > threshold``, else 0: RAdam without its SGD phase multiplies Adam's learning rate by this.

    Args:
        t: the step, from 1.
        beta2: decay of the second moment, in [0, 1).
        kind: ``"first_order"``, ``"exact"`` or ``"none"`` (then always 1), as `FusedRAdam`'s ``rectification``.
        threshold: as `FusedRAdam`'s ``rho_threshold``.

    Raises:
        ValueError: an argument out of its range.
    """
    check_kind(kind, threshold)  # before `rectification` looks the arguments up in its cache
    r = rectification(t, beta2, kind, threshold)
    return 0.0 if r is None else r


def _check_groups(optimizer: Optimizer) -> None:
    """Raises for an optimizer whose groups have no beta2 that a warm-up could follow from."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer = {optimizer!r}: must be a torch.optim.Optimizer")
    for index, group in enumerate(optimizer.param_groups):
        if "betas" not in group:
            raise ValueError(
                f"param_groups[{index}] of a {type(optimizer).__name__} has no 'betas': these warm-ups follow from "
                "beta2, so the optimizer must be one with betas, such as Adam"
            )
        betas = group["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise TypeError(f"param_groups[{index}]: betas = {betas!r}: must be a pair of numbers in [0, 1)")
        check_step(1, betas[1])


def _beta2(group: dict[str, Any]) -> float:
    return float(group["betas"][1])


class _Warmup(LRScheduler):
    """A scheduler that multiplies each group's initial learning rate by ``factor(t, beta2)``."""

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        _check_groups(optimizer)
        if isinstance(last_epoch, bool) or not isinstance(last_epoch, int):
            raise TypeError(f"last_epoch = {last_epoch!r}: must be a whole number, at least -1")
        if last_epoch < -1:
            raise ValueError(f"last_epoch = {last_epoch}: must be at least -1")
        super().__init__(optimizer, last_epoch)

    def factor(self, t: int, beta2: float) -> float:
        """The factor of step ``t``, from 1."""
        raise NotImplementedError

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each group for the next step."""
        t = self.last_epoch + 1
        groups = self.optimizer.param_groups
        return [lr * self.factor(t, _beta2(g)) for lr, g in zip(self.base_lrs, groups, strict=True)]


class UntunedLinearWarmup(_Warmup):
    """`untuned_linear` as a scheduler: the learning rate rises for 2 / (1 - beta2) steps and then stays.

    Args:
        optimizer: any with ``betas`` in its groups, such as Adam and AdamW.
        last_epoch: the argument of torch's schedulers: the index of the last epoch, -1 at the start of training.

    Raises:
        ValueError, TypeError: an argument that is not allowed; a group without betas, or with a beta2 outside [0, 1).
    """

    def factor(self, t: int, beta2: float) -> float:
        """`untuned_linear`."""
        return untuned_linear(t, beta2)


class UntunedExponentialWarmup(_Warmup):
    """`untuned_exponential` as a scheduler.

    Args:
        optimizer: any with ``betas`` in its groups, such as Adam and AdamW.
        last_epoch: the argument of torch's schedulers: the index of the last epoch, -1 at the start of training.

    Raises:
        ValueError, TypeError: an argument that is not allowed; a group without betas, or with a beta2 outside [0, 1).
    """

    def factor(self, t: int, beta2: float) -> float:
        """`untuned_exponential`."""
        return untuned_exponential(t, beta2)


class RectifiedWarmup(_Warmup):
    """`rectified` as a scheduler: Adam with it is RAdam without its SGD phase, except for eps (see the module).

    Args:
        optimizer: any with ``betas`` in its groups, such as Adam and AdamW.
        kind: ``"first_order"`` (the paper's), ``"exact"`` or ``"none"``.
        threshold: the learning rate is 0 until ``rho_t`` exceeds this; at least 4.
        last_epoch: the argument of torch's schedulers: the index of the last epoch, -1 at the start of training.

    Raises:
        ValueError, TypeError: an argument that is not allowed: an unknown kind, or a threshold below 4 or infinite, for
            example; a group without betas, or with a beta2 outside [0, 1).
    """

    def __init__(
        self, optimizer: Optimizer, kind: Kind = "first_order", threshold: float = 5.0, last_epoch: int = -1
    ) -> None:
        check_kind(kind, threshold)
        self.kind = kind
        self.threshold = threshold
        super().__init__(optimizer, last_epoch)

    def factor(self, t: int, beta2: float) -> float:
        """`rectified`, with this scheduler's kind and threshold."""
        return rectified(t, beta2, self.kind, self.threshold)
