"""What this installation can run, and why it cannot run the rest: what ``python -m radam_fused`` prints."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from .backends import available_backends, backend_for, check_name
from .options import ENVIRONMENT_VARIABLE


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _built(module: str) -> str:
    """Whether an extension module was built, and whether it loads."""
    if importlib.util.find_spec(module) is None:
        return "not built"
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"built, but does not load: {str(error) or 'ImportError'}"
    return "built"


def _cpu() -> str:
    """The instruction set of the backend ``cpu``."""
    if _built("radam_fused._C") != "built":
        return "unknown without the C++ extension"
    capability: str = importlib.import_module("radam_fused._C").cpu_capability()
    return capability


def _auto(device_type: str) -> str:
    """Which backend steps parameters of a device unless the constructor names one."""
    try:
        name = backend_for(device_type, check_name("auto"), warn=False)
    except (RuntimeError, ValueError) as error:
        return f'backend="auto" cannot step {device_type} parameters: {error}'
    return f'backend="auto" steps {device_type} parameters with {name!r}.'


def report() -> str:
    """Versions, what was built, and each backend with the reason where it cannot run here."""
    cuda = torch.version.cuda
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    facts = {
        "radam_fused": _version("radam_fused"),
        "Python": platform.python_version(),
        "torch": f"{torch.__version__} ({f'for CUDA {cuda}' if cuda else 'without CUDA'})",
        "triton": _version("triton"),
        "GPUs": ", ".join(gpus) or "none that torch sees",
        "C++ extension": _built("radam_fused._C"),
        "CUDA library": _built("radam_fused._C_cuda"),
        "CPU instructions": f"{_cpu()}, {torch.get_num_threads()} threads",
    }
    chosen = os.environ.get(ENVIRONMENT_VARIABLE)
    if chosen is not None:
        facts[ENVIRONMENT_VARIABLE] = chosen
    width = max(map(len, facts))
    lines = [f"{name.ljust(width)}  {value}" for name, value in facts.items()]
    backends = available_backends()
    width = max(map(len, backends))
    lines += ["", "Backends:"]
    lines += [
        f"  {name.ljust(width)}  {'can run' if reason is None else f'cannot run: {reason}'}"
        for name, reason in backends.items()
    ]
    lines += ["", *(_auto(device) for device in ("cpu", *(("cuda",) if gpus else ())))]
    return "\n".join([*lines, "", "python -m radam_fused plan --help: what a model's state takes in memory."])
