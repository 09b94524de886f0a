"""The options of `FusedRAdam` and their ranges; each error names the argument, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .rectification import KINDS

GROUP_DEFAULTS: dict[str, Any] = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "decoupled_weight_decay": False,
    "maximize": False,
    "capturable": False,
    "foreach": None,
    "differentiable": False,
    "rho_threshold": 5.0,
    "degenerated_to_sgd": True,
    "rectification": "first_order",
    "seed": 0,
}
"""What a parameter group holds; a group from torch.optim.RAdam's state_dict is completed from here."""

SEEDS = 2**32


def _number(name: str, value: Any, allowed: str, low: float, high: float = float("inf")) -> None:
    """Raises unless ``low <= value < high``; NaN fails every comparison."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} = {value!r}: must be a number, {allowed}")
    if not low <= float(value) < high:
        raise ValueError(f"{name} = {value!r}: must be {allowed}")


def check_flag(name: str, value: Any) -> None:
    """Raises TypeError unless the value is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} = {value!r}: must be True or False")


def check_group(group: Mapping[str, Any]) -> None:
    """Raises for the first hyperparameter of a group that is out of its range.

    Raises:
        TypeError: a value of the wrong kind.
        ValueError: a value out of its range.
    """
    lr = group["lr"]
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"lr = {lr!r}: a tensor lr must have one element")
        lr = lr.item()
    _number("lr", lr, "finite and at least 0", 0.0)
    betas = group["betas"]
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"betas = {betas!r}: must be a pair of numbers in [0, 1)")
    for index, beta in enumerate(betas):
        _number(f"betas[{index}]", beta, "in [0, 1)", 0.0, 1.0)
    _number("eps", group["eps"], "finite and at least 0", 0.0)
    _number("weight_decay", group["weight_decay"], "finite and at least 0", 0.0)
    _number("rho_threshold", group["rho_threshold"], "at least 4, where the variance becomes finite", 4.0)
    if group["rectification"] not in KINDS:
        raise ValueError(f"rectification = {group['rectification']!r}: must be one of {KINDS}")
    for name in ("decoupled_weight_decay", "maximize", "degenerated_to_sgd", "capturable", "differentiable"):
        check_flag(name, group[name])
    seed = group["seed"]
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed = {seed!r}: must be a whole number in [0, 2**32)")
    if not 0 <= seed < SEEDS:
        raise ValueError(f"seed = {seed!r}: must be in [0, 2**32)")
    if group["foreach"] not in (None, True, False):
        raise TypeError(f"foreach = {group['foreach']!r}: must be None, True or False")


def check_max_grad_norm(value: Any) -> None:
    """Raises unless the gradients' norm can be clipped to this; infinity only measures it."""
    if value is None or (value == float("inf") and not isinstance(value, bool)):
        return
    _number("max_grad_norm", value, "None, or at least 0", 0.0)


def refuse_with_differentiable(values: Mapping[str, Any]) -> None:
    """Raises ValueError for an option that ``differentiable=True`` does not go with."""
    allowed: dict[str, tuple[Any, ...]] = {
        **dict.fromkeys(("capturable", "flatten", "offload"), (False,)),
        "max_grad_norm": (None,),
        "backend": ("auto", "reference"),
        "state_dtype": (torch.float32,),
        "master_weights": (None,),
        "rounding": ("nearest",),
    }
    for name, fine in allowed.items():
        if values[name] not in fine:
            raise ValueError(f"{name} = {values[name]!r}: must be one of {fine} with differentiable = True")
