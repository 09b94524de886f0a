"""The ``cuda`` backend: the CUDA library ``radam_fused._C_cuda`` (csrc/cuda), one launch a step for a whole bucket."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

import torch

_library: ModuleType | None = None
_failure: str | None = None
_runs = False
"""Whether everything has been found to be there, with CUDA started: a step need not ask again."""

_REINSTALL = "reinstall radam_fused with --no-build-isolation where this torch and its CUDA's nvcc are"


def load() -> None:
    """Loads the library, which registers ``radam_fused::step_native`` for CUDA tensors; notes why it cannot."""
    global _library, _failure
    if importlib.util.find_spec("radam_fused._C_cuda") is None:
        _failure = f"the CUDA library was not built ({_torch_build()}); {_REINSTALL}"
        return
    try:
        _library = importlib.import_module("radam_fused._C_cuda")
    except ImportError as error:  # libraries of torch or CUDA that it was linked with and that are not here
        _failure = f"the CUDA library does not load ({_torch_build()}): {error}; {_REINSTALL}"


def unavailable() -> str | None:
    """Why this backend cannot run here, or None if it can."""
    global _runs
    if _runs:
        return None
    if _library is None:
        return _failure
    version = _library.cuda_version()
    built = f"{version // 1000}.{version % 1000 // 10}"
    if torch.version.cuda is None or int(torch.version.cuda.partition(".")[0]) != version // 1000:
        return f"the CUDA library was built with CUDA {built}, but {_torch_build()}; {_REINSTALL}"
    if not torch.cuda.is_available():
        return f"torch sees no GPU (the CUDA library is there, built with CUDA {built}; {_torch_build()})"
    if not torch.cuda.is_initialized():  # to ask a device would start CUDA, and spoil a later fork
        return None
    reason = _too_old()
    _runs = reason is None
    return reason


def _torch_build() -> str:
    cuda = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return f"torch {torch.__version__} is a build {cuda}"


def _too_old() -> str | None:
    """Says so if a GPU here is older than every architecture that the library was built for."""
    assert _library is not None
    oldest = min(map(int, _library.architectures().split(",")))
    for device in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(device)
        if 100 * major + 10 * minor < oldest:
            name = torch.cuda.get_device_name(device)
            return (
                f"{name} (compute capability {major}.{minor}) is older than what the CUDA library was built for "
                f"({oldest // 100}.{oldest % 100 // 10}); build it with TORCH_CUDA_ARCH_LIST={major}.{minor}"
            )
    return None
