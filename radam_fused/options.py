"""The options of `FusedRAdam` and their ranges; each error names the argument, its value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .option_hints import CHANGE_TRAINING, HINTS
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
"""The hyperparameters of a group and their defaults; a group from torch.optim.RAdam's state_dict lacks some of them."""

WIDE = (
    "backend",
    "flatten",
    "state_dtype",
    "master_weights",
    "rounding",
    "max_grad_norm",
    "zero_grads",
    "offload",
)
"""Options of the whole optimizer: a parameter group cannot have its own value of them."""

SEEDS = 2**32
ENVIRONMENT_VARIABLE = "RADAM_FUSED_BACKEND"
"""The environment variable that names the backend for ``backend="auto"``."""
OFFLOAD_DEVICES = ("cpu", "cuda")

_OTHERS = tuple(name for name in GROUP_DEFAULTS if name not in ("lr", "betas"))


def _number(name: str, value: Any, allowed: str, low: float, high: float = float("inf")) -> None:
    """Raises unless ``low <= value < high``. A NaN fails every comparison."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} = {value!r}: must be a number, {allowed}")
    if not low <= float(value) < high:
        raise ValueError(f"{name} = {value!r}: must be {allowed}")


def check_flag(name: str, value: Any) -> None:
    """Raises TypeError unless the value is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} = {value!r}: must be True or False")


def check_group(group: Mapping[str, Any], where: str = "", wait: bool = True) -> None:
    """Raises for the first hyperparameter of a group that is out of its range.

    Args:
        group: with all its hyperparameters.
        where: prefix of a hyperparameter's name in an error, for example ``"param_groups[1]: "``.
        wait: whether to read a learning rate that is stored on a GPU, which synchronises with it.

    Raises:
        TypeError: a value of the wrong kind.
        ValueError: a value out of its range, or a missing one.
    """
    for name in GROUP_DEFAULTS:
        if name not in group:
            raise ValueError(f"{where}has no {name!r}: every group must have {', '.join(GROUP_DEFAULTS)}")
    _check_rate(group["lr"], where, wait)
    betas = group["betas"]
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"{where}betas = {betas!r}: must be a pair of numbers in [0, 1)")
    for index, beta in enumerate(betas):
        _number(f"{where}betas[{index}]", beta, "in [0, 1)", 0.0, 1.0)
    _number(f"{where}eps", group["eps"], "finite and at least 0", 0.0)
    _number(f"{where}weight_decay", group["weight_decay"], "finite and at least 0", 0.0)
    threshold = group["rho_threshold"]
    _number(f"{where}rho_threshold", threshold, "at least 4, where the variance becomes finite, and not infinite", 4.0)
    if group["rectification"] not in KINDS:
        raise ValueError(f"{where}rectification = {group['rectification']!r}: must be one of {KINDS}")
    for name in ("decoupled_weight_decay", "maximize", "degenerated_to_sgd", "capturable", "differentiable"):
        check_flag(f"{where}{name}", group[name])
    seed = group["seed"]
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"{where}seed = {seed!r}: must be a whole number in [0, 2**32)")
    if not 0 <= seed < SEEDS:
        raise ValueError(f"{where}seed = {seed!r}: must be in [0, 2**32)")
    if group["foreach"] not in (None, True, False):
        raise TypeError(f"{where}foreach = {group['foreach']!r}: must be None, True or False")


def _check_rate(lr: Any, where: str, wait: bool) -> None:
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"{where}lr = {lr!r}: a tensor lr must have one element")
        lr = lr.item() if wait or lr.device.type == "cpu" else 0.0
    if not (type(lr) is float and 0.0 <= lr < math.inf):
        _number(f"{where}lr", lr, "finite and at least 0", 0.0)


def beside_rate(group: Mapping[str, Any]) -> tuple[Any, ...]:
    """All hyperparameters of a group but lr, None for a missing one, with their types, as True equals 1.0.

    `Checked` compares them with a later step's.
    """
    betas = group.get("betas")
    others = tuple(map(group.get, _OTHERS))
    return (tuple(betas) if isinstance(betas, list) else betas, *others, *map(type, others))


class Checked:
    """Checks groups that have changed since their last check: every step calls it, and most steps change nothing."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, ...]] = {}

    def check(self, groups: list[dict[str, Any]], indices: Iterable[int]) -> None:
        """Raises for a hyperparameter of these groups that is not allowed.

        Raises:
            TypeError, ValueError: see `check_group`.
        """
        for index in indices:
            group = groups[index]
            others = beside_rate(group)
            if self._known.get(index) == others:
                _check_rate(group.get("lr"), f"param_groups[{index}]: ", wait=False)
            else:
                check_later(group, index, False)
                self._known[index] = others


def check_later(group: Mapping[str, Any], index: int, differentiable: bool, wait: bool = False) -> None:
    """`check_group` for a group of an existing optimizer, with the group's index in its errors.

    Args:
        group: the group.
        index: its index in ``param_groups``.
        differentiable: the optimizer's option; every group must have the same.
        wait: see `check_group`.
    """
    where = f"param_groups[{index}]: "
    check_group(group, where, wait)
    if group["differentiable"] != differentiable:
        raise ValueError(
            f"{where}differentiable = {group['differentiable']}: must be as the optimizer's, {differentiable}"
        )


def check_all(groups: list[dict[str, Any]], differentiable: bool) -> None:
    """`check_later` for all groups of an optimizer."""
    for index, group in enumerate(groups):
        check_later(group, index, differentiable)


def check_wide(group: Mapping[str, Any], own: Mapping[str, Any], where: str) -> None:
    """Raises ValueError for an option of the whole optimizer in a group, unless it has the optimizer's own value.

    Wrappers such as ZeroRedundancyOptimizer copy all of their keyword arguments into the groups as well.

    Args:
        group: a parameter group.
        own: the optimizer's value of each of `WIDE`.
        where: see `check_group`.
    """
    for name in WIDE:
        if name in group and not _same(group[name], own[name]):
            raise ValueError(
                f"{where}{name} = {group[name]!r}: is an option of the whole optimizer, not of a group, and the "
                f"optimizer has {own[name]!r}. Give it to the constructor, FusedRAdam(..., {name}={group[name]!r}), or "
                "make a second optimizer for these parameters"
            )
    for name, same in CHANGE_TRAINING.items():
        if name in group and not _same(group[name], same):
            raise ValueError(f"{where}{name} = {group[name]!r}: {HINTS[name]}")


def _same(a: Any, b: Any) -> bool:
    return (type(a) is type(b) and bool(a == b)) or (_is_number(a) and _is_number(b) and float(a) == float(b))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def check_max_grad_norm(value: Any) -> None:
    """Raises unless the value is None or above 0; with infinity the norm is measured and nothing is clipped."""
    if value is None or (value == float("inf") and not isinstance(value, bool)):
        return
    _number("max_grad_norm", value, "None, or above 0", math.ulp(0.0))


def refuse_with_differentiable(values: Mapping[str, Any]) -> None:
    """Raises ValueError for an option that cannot be combined with ``differentiable=True``."""
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


def check_offload(backend: str, flatten: bool, capturable: bool, state_dtype: torch.dtype) -> None:
    """Raises ValueError for an option that cannot be combined with ``offload=True``.

    Args:
        backend: what `radam_fused.backends.check_name` returned.
        flatten: the argument of `FusedRAdam`.
        capturable: the same.
        state_dtype: the same.
    """
    if state_dtype == torch.int8:
        raise ValueError(
            "state_dtype = torch.int8: must be torch.float32, bfloat16 or float16 with offload=True, whose chunks are "
            "no whole blocks of codes"
        )
    if backend not in ("auto", "cpu"):
        raise ValueError(
            f"backend = {backend!r} (the argument's or {ENVIRONMENT_VARIABLE}'s): must be 'auto' or 'cpu' with "
            "offload=True, which computes the step on the host"
        )
    if flatten:
        raise ValueError(
            "flatten = True: must be False with offload=True, which stages parameters and gradients in large chunks "
            "anyway; flat buffers would only take memory on the device"
        )
    check_capturable("capturable", capturable)


def check_capturable(name: str, capturable: bool) -> None:
    """Raises ValueError for ``capturable=True``, under ``offload=True``."""
    if capturable:
        raise ValueError(f"{name} = True: must be False with offload=True, as a CUDA graph cannot capture the host")


def check_offload_device(param: Tensor, name: str) -> None:
    """Raises ValueError for a parameter on a device that ``offload=True`` does not support."""
    if param.device.type not in OFFLOAD_DEVICES:
        raise ValueError(f"{name} is on {param.device}: must be on one of {OFFLOAD_DEVICES} with offload=True")
