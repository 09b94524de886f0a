"""Loading a state_dict: checked whole before anything changes, and without torch's cast of the moments.

`torch.optim.Optimizer.load_state_dict` casts floating-point state to the dtype of its parameter, which would round the
float32 moments of a bfloat16 parameter. It passes on what is no tensor untouched, so tensors travel wrapped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ..dtensor import check_part, is_fsdp1, local
from ..numerics.layout import ALIGNMENT
from ..numerics.state_format import second_dtype
from ..options import GROUP_DEFAULTS, WIDE, check_group
from ..tensor_kinds import is_fake
from .codec import CODES, MASTERS, NAMES, OLD_CODES, names_of, portable

OURS = NAMES | {"step"}
"""What a step keeps in an entry of ``optimizer.state``."""


class _Verbatim:
    """A value that torch's casting passes on as it is."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Entry(NamedTuple):
    name: str
    param: Tensor
    state: Mapping[str, Any]


def pack(packed: Mapping[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """What torch.optim packed of an optimizer, with plain dicts, and state that may go to other ranks."""
    params: dict[Any, Tensor] = dict(enumerate(p for group in groups for p in group["params"]))  # as torch counts them
    state = {
        key: dict(portable(entry, params.get(key, key))) if isinstance(entry, dict) else entry
        for key, entry in packed["state"].items()
    }
    return {**packed, "state": state}


def wrap(state_dict: Mapping[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The state_dict with what is ours of its per-parameter state wrapped, and with its groups `completed`.

    torch casts and moves the rest.
    """
    state = {
        key: {name: _Verbatim(value) if name in OURS else value for name, value in entry.items()}
        if isinstance(entry, Mapping)
        else entry
        for key, entry in state_dict["state"].items()
    }
    return {**state_dict, "state": state, "param_groups": completed(state_dict, groups)}


def unwrap(state: dict[Any, Any]) -> None:
    """Undoes `wrap` in place, in an optimizer's ``state``."""
    for entry in state.values():
        if isinstance(entry, dict):
            for name, value in entry.items():
                if isinstance(value, _Verbatim):
                    entry[name] = value.value


def _entries(state_dict: Mapping[str, Any], groups: list[dict[str, Any]]) -> list[_Entry]:
    """The loaded state of each of our parameters, matched by position as torch does."""
    saved_groups = state_dict["param_groups"]
    for index, group in enumerate(saved_groups):
        if "params" not in group:
            raise ValueError(f"state_dict: param_groups[{index}] has no 'params'; it holds {sorted(group)}")
    sizes = [len(group["params"]) for group in groups]
    saved_sizes = [len(group["params"]) for group in saved_groups]
    if sizes != saved_sizes:
        raise ValueError(f"state_dict: its groups hold {saved_sizes} parameters, this optimizer's hold {sizes}")
    saved = chain.from_iterable(group["params"] for group in saved_groups)
    own = [
        (f"param_groups[{i}]['params'][{k}]", p)
        for i, group in enumerate(groups)
        for k, p in enumerate(group["params"])
    ]
    state = state_dict["state"]
    return [_Entry(name, p, state[key]) for key, (name, p) in zip(saved, own, strict=True) if state.get(key)]


def completed(state_dict: Mapping[str, Any], groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The saved groups, each with the hyperparameters that it does not have as our group of its place has them.

    What torch.optim.RAdam or an older torch has saved knows nothing of some. Options of the whole optimizer, which
    ZeroRedundancyOptimizer saves with its groups, are left out: they stay as this optimizer was made with them.
    """
    return [
        {
            **{name: own[name] for name in GROUP_DEFAULTS if name in own},
            **{name: value for name, value in saved.items() if name not in WIDE},
        }
        for saved, own in zip(state_dict["param_groups"], groups, strict=True)
    ]


def _check_step(source: str, name: str, step: Any) -> None:
    if is_fake(step):  # it has no value
        return
    number = step.item() if isinstance(step, Tensor) and step.numel() == 1 else step
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"{source}: 'step' of {name} is {step!r}: must be one number")
    if not (0 <= number < math.inf and number == int(number)):
        raise ValueError(f"{source}: 'step' of {name} is {number!r}: must be a whole number, at least 0")


_INTEGERS = {
    **dict.fromkeys((CODES[0], OLD_CODES[0]), torch.int8),
    **dict.fromkeys((CODES[1], OLD_CODES[1]), second_dtype(torch.int8)),
    "master_low": torch.int16,
}
"""Entries that hold integers, and their own dtype; `portable` widens some."""


def _check_integers(what: str, value: Tensor, dtype: torch.dtype) -> None:
    """Raises for a tensor in a wider dtype that holds anything but integers of this one."""
    limits = torch.iinfo(dtype)
    wrong = value[value != value.round().clamp(limits.min, limits.max)]
    if wrong.numel():
        raise ValueError(f"{what} holds {wrong[0].item()}: must be integers from {limits.min} to {limits.max}")


def _check_tensor(what: str, key: str, value: Any, param: Tensor, state: Mapping[str, Any]) -> None:
    """Raises for a tensor of an entry that is not what its name says, for this parameter."""
    real = (*param.shape, 2) if param.is_complex() else tuple(param.shape)  # also of a DTensor the whole
    expected, kind, fits = real, "dense", isinstance(value, Tensor) and value.layout == torch.strided
    in_one_dtype = fits and is_fsdp1(param) and value.dtype == torch.float32  # as `portable` makes it
    if key in (*CODES, *OLD_CODES):
        dtype = _INTEGERS.get(key, torch.float32)
        kind, fits = f"dense {dtype}", fits and (value.dtype == dtype or in_one_dtype)
        if key in CODES[2:] and not (fits and tuple(value.shape) == expected):  # of each block, not of each element
            code = state[CODES[0] if CODES[0] in state else OLD_CODES[0]]
            expected = (-(-local(code).numel() // ALIGNMENT),)
    elif key in MASTERS:
        half = (torch.float16, torch.bfloat16)
        master = MASTERS[key]
        kind = f"dense {master or 'float16 or bfloat16'}"
        wide = fits and key == "master_low" and value.dtype == torch.int32  # as `portable` widens it
        fits = wide or (fits and (in_one_dtype or (value.dtype == master if master else value.dtype in half)))
    elif param.is_complex() and fits and value.dtype.is_complex:
        expected = tuple(param.shape)
    else:
        whole = not param.is_complex() or value.dtype.itemsize < 4 if fits else True
        kind = "dense floating-point" if not param.is_complex() else "dense complex"
        fits = fits and whole and value.dtype.is_floating_point
    if not fits:
        raise TypeError(f"{what} must be a {kind} tensor")
    if value.is_meta:
        raise ValueError(f"{what} is on the meta device: it must have values")
    if tuple(value.shape) != expected:
        raise ValueError(f"{what} has shape {tuple(value.shape)}: must be {expected}")
    integers = _INTEGERS.get(key)
    if integers is not None and value.dtype != integers:
        _check_integers(what, local(value), integers)


def has_state(entry: Any) -> bool:
    """Whether an entry of ``optimizer.state`` holds what a step has left there, rather than a user's things alone."""
    return isinstance(entry, Mapping) and not OURS.isdisjoint(entry)


def check_entry(source: str, name: str, param: Tensor, state: Mapping[str, Any]) -> None:
    """Raises for one parameter's state that does not fit it.

    Args:
        source: what errors call the place where the state is.
        name: what they call the parameter.
        param: the parameter.
        state: its entry.

    Raises:
        ValueError: a key that is missing, a moment of another shape, or a step out of range.
        TypeError: a moment of the wrong kind.
    """
    moments = names_of(state)
    for key in ("step", *(moments or ("exp_avg", "exp_avg_sq"))):
        if key not in state:
            raise ValueError(f"{source}: the state of {name} has no {key!r}; it holds {sorted(map(str, state))}")
    assert moments is not None
    _check_step(source, name, state["step"])
    for key in (*moments, *(name for name in MASTERS if name in state)):
        what = f"{source}: {key!r} of {name}"
        _check_tensor(what, key, state[key], param, state)
        check_part(param, state[key], what)


def check_mapping(state_dict: Any) -> None:
    """Raises TypeError for what cannot be a state_dict."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict = {state_dict!r:.80}: must be a dict, what an optimizer's state_dict() returned")


def _check_kinds(state_dict: Mapping[str, Any]) -> None:
    """Raises TypeError where the containers of a state_dict are not those that torch.optim makes."""
    saved_groups, state = state_dict["param_groups"], state_dict["state"]
    if not isinstance(saved_groups, (list, tuple)):
        raise TypeError(f"state_dict: param_groups = {saved_groups!r:.80}: must be a list of dicts")
    for index, group in enumerate(saved_groups):
        if not isinstance(group, Mapping):
            raise TypeError(f"state_dict: param_groups[{index}] = {group!r:.80}: must be a dict")
        if not isinstance(group.get("params", []), (list, tuple)):
            raise TypeError(f"state_dict: param_groups[{index}]['params'] = {group['params']!r:.80}: must be a list")
    if not isinstance(state, Mapping):
        raise TypeError(f"state_dict: state = {state!r:.80}: must be a dict of dicts")
    for key, entry in state.items():
        if entry is not None and not isinstance(entry, Mapping):
            raise TypeError(f"state_dict: state[{key!r}] = {entry!r:.80}: must be a dict")


def check_state_dict(state_dict: Mapping[str, Any], groups: list[dict[str, Any]]) -> None:
    """Raises if the state_dict does not fit these parameter groups.

    Raises:
        ValueError: another number of groups or parameters, a moment of another shape, a hyperparameter or a step out
            of range, or state that is not RAdam's.
        TypeError: a moment or hyperparameter of the wrong kind.
        NotImplementedError: a hyperparameter that a later version will honour.
    """
    for key in ("state", "param_groups"):
        if key not in state_dict:
            raise ValueError(f"state_dict: has no {key!r}; it must be what an optimizer's state_dict() returned")
    _check_kinds(state_dict)
    for name, param, state in _entries(state_dict, groups):
        if is_lazy(param):
            raise ValueError(f"state_dict: has state for {name}, which is uninitialized: run its lazy module before")
        check_entry("state_dict", name, param, state)
    for index, (whole, own) in enumerate(zip(completed(state_dict, groups), groups, strict=True)):
        check_group(whole, f"state_dict: param_groups[{index}]: ")
        if whole["differentiable"] != own["differentiable"]:
            raise ValueError(
                f"state_dict: differentiable = {whole['differentiable']} in param_groups[{index}]: must be as the "
                f"optimizer's, {own['differentiable']}"
            )
