"""Names the backends, says which can run here, and chooses the one that ``backend="auto"`` uses for a device."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Literal, get_args

import torch

from ..options import ENVIRONMENT_VARIABLE
from . import native
from .triton import availability as triton

BackendName = Literal["auto", "cuda", "triton", "cpu", "reference"]
NAMES: tuple[BackendName, ...] = get_args(BackendName)
_AUTO = {"cuda": ("cuda", "triton"), "cpu": ("cpu",)}
_UNAVAILABLE = {
    "cuda": native.cuda_unavailable,
    "triton": triton.unavailable,
    "cpu": native.cpu_unavailable,
    "reference": lambda: None,
}
_warned: set[str] = set()


def available_backends() -> dict[str, str | None]:
    """Every backend's name, with None if it can run here, and otherwise the reason why it cannot."""
    return {name: unavailable() for name, unavailable in _UNAVAILABLE.items()}


def check_name(backend: str) -> str:
    """Checks and returns the backend's name; for ``"auto"``, that of RADAM_FUSED_BACKEND if it is set.

    Raises:
        ValueError: a name that is not in `NAMES`.
        RuntimeError: a backend that cannot run here, with the reason.
    """
    given_as = "backend"
    if backend == "auto" and ENVIRONMENT_VARIABLE in os.environ:
        given_as, backend = ENVIRONMENT_VARIABLE, os.environ[ENVIRONMENT_VARIABLE]
    if backend not in NAMES:
        raise ValueError(f"{given_as} = {backend!r}: must be one of {NAMES}")
    reason = available_backends()[backend] if backend != "auto" else None
    if reason is not None:
        raise RuntimeError(f"{given_as} = {backend!r} cannot run here: {reason}")
    return backend


def check_host() -> None:
    """Raises RuntimeError where the host cannot compute the steps of ``offload=True``."""
    reason = _UNAVAILABLE["cpu"]()
    if reason is not None:
        raise RuntimeError(f"offload = True: the host steps with the backend 'cpu', which cannot run here: {reason}")


def backend_for(device_type: str, backend: str, warn: bool = True) -> str:
    """The name of the backend that steps the parameters of a device. Warns when ``"auto"`` finds only 'reference'.

    Args:
        device_type: ``"cpu"`` or ``"cuda"``.
        backend: what `check_name` returned.
        warn: of `reference`, once in a process, and of devices without kernels.

    Raises:
        ValueError: a backend that does not serve this device.
    """
    if backend == "auto":
        name, missing = preferred(device_type)
        if warn and device_type not in _AUTO:
            _warn_of_device(device_type)
        elif warn and name == "reference":
            reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
            text = f"FusedRAdam steps its {device_type} parameters with the slow 'reference' backend ({reasons})"
            if text not in _warned:
                _warn(text)
                _warned.add(text)
        return name
    if (backend in ("cpu", "cuda") and device_type != backend) or (
        backend == "triton" and device_type != "cuda" and not triton.interpreted()
    ):
        serving = (*_AUTO.get(device_type, ()), "auto", "reference")
        raise ValueError(f"backend = {backend!r} does not serve parameters on {device_type}: must be one of {serving}")
    return backend


def preferred(device_type: str) -> tuple[str, dict[str, str]]:
    """The backend that ``"auto"`` uses for a device, and why it uses none of those that come before it."""
    missing: dict[str, str] = {}
    for name in _AUTO.get(device_type, ()):
        reason = _UNAVAILABLE[name]()  # of no other backends: every step calls this
        if reason is None:
            return name, missing
        missing[name] = reason
    return "reference", missing


def _warn_of_device(device_type: str) -> None:
    """Warns of parameters on a device for which no kernels are made."""
    if device_type == "meta":
        text = (
            "FusedRAdam has parameters on the meta device, which have no values: a step changes nothing. Make the "
            "optimizer after model.to_empty(device=...), which replaces the parameters"
        )
    else:
        text = f"no backend has kernels for {device_type}: FusedRAdam steps such parameters with the slow 'reference'"
    _warn(text)


def _warn(text: str) -> None:
    """Warns at the line of user code that called the package, whatever called it between: torch.optim's wrappers do."""
    inside = tuple(f"{folder}{os.sep}" for folder in (Path(__file__).parents[1], Path(torch.__file__).parent))
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)
