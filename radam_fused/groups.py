"""Parameter groups: how errors name what is in one, and what is asked of one that is new."""

from __future__ import annotations

from typing import Any

from .backends import backend_for
from .checks import check_parameter
from .forms import Storage
from .offload import check_capturable, check_device
from .options import check_group


def group_names(group: dict[str, Any], index: int) -> list[str]:
    """How errors name a group's parameters: by the names the caller gave, or by their place."""
    return [
        f"parameter {name!r}" if isinstance(name, str) else f"param_groups[{index}]['params'][{k}]"
        for k, name in enumerate(group.get("param_names") or [None] * len(group["params"]))
    ]


def check_new_group(
    group: dict[str, Any], index: int, differentiable: bool, backend: str, storage: Storage, offload: bool
) -> None:
    """Raises for a group that an optimizer cannot take.

    Args:
        group: with all its hyperparameters.
        index: its place among the groups.
        differentiable: the optimizer's, as all of these are.
        backend: what `radam_fused.backends.check_name` returned.
        storage: how the state is stored.
        offload: whether it is kept on the host.

    Raises:
        TypeError, ValueError: a hyperparameter or a parameter that is not allowed, by name.
    """
    check_group(group)
    if group["differentiable"] != differentiable:
        raise ValueError(
            f"param_groups[{index}]: differentiable = {group['differentiable']}: must be as the optimizer's, "
            f"{differentiable}"
        )
    if len(set(group["params"])) < len(group["params"]):
        raise ValueError(f"param_groups[{index}]: a parameter appears twice; list each one once")
    if offload:
        check_capturable(f"param_groups[{index}]['capturable']", group["capturable"])
    for p, name in zip(group["params"], group_names(group, index), strict=True):
        check_parameter(p, name)
        storage.check_parameter(p, name)
        if offload:
            check_device(p, name)
        else:
            backend_for(p.device.type, backend)
