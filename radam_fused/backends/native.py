"""The backends ``cpu`` and ``cuda``: the C++ extension ``radam_fused._C`` and the CUDA library ``radam_fused._C_cuda``.

The extension (csrc/cpu) is vectorised and threaded. The library (csrc/cuda) makes one launch per step and bucket.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from types import ModuleType

import torch

_library: ModuleType | None = None
_cpu_failure: str | None = None
_cuda_failure: str | None = None
_runs = False
"""Whether the CUDA library was found to run on the GPUs here, after CUDA was initialised: checked once."""

_REINSTALL = "reinstall radam_fused with --no-build-isolation where this torch and its CUDA's nvcc are"


def load_cpu() -> None:
    """Loads the extension, whose static initialisers register ``radam_fused::step_native``; records why it cannot."""
    global _cpu_failure
    try:
        importlib.import_module("radam_fused._C")
    except ImportError as error:
        what = str(error) or "ImportError"
        _cpu_failure = f"the C++ extension is not there: {what}; reinstall radam_fused where there is a C++ compiler"


def cpu_unavailable() -> str | None:
    """Why the backend ``cpu`` cannot run here, or None if it can."""
    return _cpu_failure


def load_cuda() -> None:
    """Loads the library, which registers ``radam_fused::step_native`` for CUDA tensors; records why it cannot."""
    global _library, _cuda_failure
    if importlib.util.find_spec("radam_fused._C_cuda") is None:
        _cuda_failure = f"the CUDA library was not built ({_torch_build()}); {_REINSTALL}"
        return
    try:
        _library = importlib.import_module("radam_fused._C_cuda")
    except ImportError as error:  # a library of torch or CUDA that it was linked with is missing
        what = str(error) or "ImportError"
        _cuda_failure = f"the CUDA library does not load ({_torch_build()}): {what}; {_REINSTALL}"


def cuda_unavailable() -> str | None:
    """Why the backend ``cuda`` cannot run here, or None if it can."""
    global _runs
    if _runs:
        return None
    if _library is None:
        return _cuda_failure
    version = _library.cuda_version()
    built = f"{version // 1000}.{version % 1000 // 10}"
    if torch.version.cuda is None or int(torch.version.cuda.partition(".")[0]) != version // 1000:
        return f"the CUDA library was built with CUDA {built}, but {_torch_build()}; {_REINSTALL}"
    if not torch.cuda.is_available():
        return f"torch sees no GPU (the CUDA library is there, built with CUDA {built}; {_torch_build()})"
    if not torch.cuda.is_initialized():  # asking a device initialises CUDA, which breaks a later fork
        return None
    reason = _without_code()
    _runs = reason is None
    return reason


def _torch_build() -> str:
    cuda = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return f"torch {torch.__version__} is a build {cuda}"


def _without_code() -> str | None:
    """The reason if a GPU here can run none of the code in the library; None if all can."""
    assert _library is not None
    code = _library.code().replace(" ", "").split(",")
    for device in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(device)
        if not any(runs_on(capability, name) for name in code):
            name, architecture = torch.cuda.get_device_name(device), ".".join(map(str, capability))
            return (
                f"{name} (compute capability {architecture}) can run none of the code in the CUDA library "
                f"({', '.join(code)}); build it with TORCH_CUDA_ARCH_LIST={architecture}, or with +PTX behind an older "
                "architecture"
            )
    return None


def runs_on(capability: tuple[int, int], code: str) -> bool:
    """Whether a GPU runs code that nvcc has compiled.

    Machine code runs on GPUs of the same major and at least the same minor architecture; PTX runs on all GPUs at least
    as new. The suffix ``a`` limits either to exactly that architecture, ``f`` to its major one.

    Args:
        capability: the GPU's compute capability.
        code: as nvcc's option ``code=`` names it: ``"sm_90"``, ``"compute_90"``, ``"sm_90a"``.
    """
    kind, number, limit = re.fullmatch(r"(sm|compute)_(\d+)([af]?)", code).groups()  # type: ignore[union-attr]
    made_for = divmod(int(number), 10)
    if limit == "a":
        return made_for == capability
    return made_for <= capability and (made_for[0] == capability[0] or (kind == "compute" and not limit))
