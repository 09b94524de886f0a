"""The backends: which there are, which can run here, and which one ``backend="auto"`` takes for a device."""

from __future__ import annotations

import os
import warnings

from ..options import ENVIRONMENT_VARIABLE
from . import native
from .triton import availability as triton

NAMES = ("auto", "cuda", "triton", "cpu", "reference")
_AUTO = {"cuda": ("cuda", "triton"), "cpu": ("cpu",)}
_UNAVAILABLE = {
    "cuda": native.cuda_unavailable,
    "triton": triton.unavailable,
    "cpu": native.cpu_unavailable,
    "reference": lambda: None,
}


def available_backends() -> dict[str, str | None]:
    """Every backend by name, with None if this installation can run it here, and otherwise the reason why not."""
    return {name: unavailable() for name, unavailable in _UNAVAILABLE.items()}


def check_name(backend: str) -> str:
    """The backend asked for: the argument, or the environment's choice where that leaves it open.

    Raises:
        ValueError: not one of `NAMES`.
        RuntimeError: a backend that cannot run here, with the reason.
    """
    origin = "backend"
    if backend == "auto" and ENVIRONMENT_VARIABLE in os.environ:
        origin, backend = ENVIRONMENT_VARIABLE, os.environ[ENVIRONMENT_VARIABLE]
    if backend not in NAMES:
        raise ValueError(f"{origin} = {backend!r}: must be one of {NAMES}")
    reason = available_backends()[backend] if backend != "auto" else None
    if reason is not None:
        raise RuntimeError(f"{origin} = {backend!r} cannot run here: {reason}")
    return backend


def backend_for(device_type: str, backend: str) -> str:
    """The backend that steps the parameters of a device.

    Args:
        device_type: ``"cpu"`` or ``"cuda"``.
        backend: what `check_name` returned.

    Raises:
        ValueError: a backend that does not serve this device.
    """
    if backend == "auto":
        missing = {}
        for name in _AUTO.get(device_type, ()):
            reason = _UNAVAILABLE[name]()  # of this one only: a step asks
            if reason is None:
                return name
            missing[name] = reason
        reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        warnings.warn(
            f"FusedRAdam steps its {device_type} parameters with the slow 'reference' backend ({reasons})", stacklevel=4
        )
        return "reference"
    if (backend in ("cpu", "cuda") and device_type != backend) or (
        backend == "triton" and device_type != "cuda" and not triton.interpreted()
    ):
        raise ValueError(f"backend = {backend!r} does not serve parameters on {device_type}")
    return backend
