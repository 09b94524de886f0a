"""Checks parameter groups and parameters that a user gives to the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from .backends import backend_for
from .numerics.state_format import StateFormat
from .numerics.tensor_checks import check_parameter, group_names, may_step
from .options import check_capturable, check_later, check_offload_device, check_wide
from .tensor_kinds import check_memory


def check_new_group(
    group: dict[str, Any],
    index: int,
    differentiable: bool,
    backend: str,
    storage: StateFormat,
    offload: bool,
    own: Mapping[str, Any],
) -> None:
    """Raises for a parameter group that the optimizer cannot step.

    Args:
        group: the group, with all its hyperparameters.
        index: its index in ``param_groups``.
        differentiable: the optimizer's option.
        backend: what `radam_fused.backends.check_name` returned.
        storage: how the state is stored.
        offload: whether it is kept on the host.
        own: the optimizer's value of each option in `radam_fused.options.WIDE`.

    A parameter that requires no gradient may be a tensor of any kind here: `check_new_params` checks it before its
    first step, should it be thawed.

    Raises:
        TypeError, ValueError: a hyperparameter or a parameter that is not allowed. The message names it.
    """
    check_wide(group, own, f"param_groups[{index}]: ")
    check_later(group, index, differentiable, wait=True)
    if len(set(group["params"])) < len(group["params"]):
        raise ValueError(f"param_groups[{index}]: a parameter appears twice; list each one once")
    if offload:
        check_capturable(f"param_groups[{index}]['capturable']", group["capturable"])
    for p, name in zip(group["params"], group_names(group, index), strict=True):
        if may_step(p):
            if not differentiable:
                check_memory(p, name)
            _check_steppable(p, name, backend, storage, offload)


def check_new_params(
    params: Iterable[Tensor], names: Callable[[], dict[Tensor, str]], backend: str, storage: StateFormat, offload: bool
) -> None:
    """Raises for a parameter that the optimizer cannot step, before its state is made; a thawed one, for example.

    Args:
        params: the parameters that are about to get state.
        names: returns what errors call each parameter; called only for an error.
        backend: what `radam_fused.backends.check_name` returned.
        storage: how the state is stored.
        offload: whether it is kept on the host.

    Raises:
        TypeError, ValueError: a parameter that is not allowed. The message names it.
    """
    for p in params:
        try:
            check_memory(p, "a parameter")
            _check_steppable(p, "a parameter", backend, storage, offload)
        except (TypeError, ValueError):
            check_memory(p, names()[p])
            _check_steppable(p, names()[p], backend, storage, offload)
            raise


def _check_steppable(param: Tensor, name: str, backend: str, storage: StateFormat, offload: bool) -> None:
    check_parameter(param, name)
    storage.check_parameter(param, name)
    if offload:
        check_offload_device(param, name)
    else:
        backend_for(param.device.type, backend)
