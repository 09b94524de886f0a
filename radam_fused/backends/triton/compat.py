"""What Triton's compilers take and do: options by target, and versions that need a repair or a warning.

On Blackwell two float32 operations may go in one packed instruction. ptxas before CUDA 13.1 fuses a packed
multiplication with the addition after it, `mul.rn.f32x2` and `add.rn.f32x2` though these are, and under -fmad=false.
Triton brings a ptxas of its own: 12.9 in Triton 3.6, 13.1 in Triton 3.7.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch


def target() -> Any:
    """What Triton compiles for: its ``backend`` ("cuda", "hip" or another), architecture and warp size."""
    from triton.runtime import driver

    return driver.active.get_current_target()


def register_limit(count: int) -> dict[str, int]:
    """The launch option that limits a thread's registers, where Triton's backend knows one: NVIDIA's alone does."""
    from triton import knobs

    return {"maxnreg": count} if knobs.runtime.interpret or target().backend == "cuda" else {}


def architecture() -> int:
    """NVIDIA's compute capability that Triton compiles for, as in 90 for sm_90; 0 elsewhere and where it interprets."""
    from triton import knobs

    if knobs.runtime.interpret or target().backend != "cuda":
        return 0
    arch: int = target().arch
    return arch


def warp_size() -> int:
    """Threads of a warp: 64 on AMD's GPUs for data centres, 32 on all others."""
    threads: int = target().warp_size
    return threads


def is_hooked(kernel: Any) -> bool:
    """Whether a tool looks at launches, as Triton's profiler does, or at how kernels are compiled.

    It is served by Triton's own launch alone. Until Triton 3.3 a hook was a function or None, and is a chain since.
    """
    from triton import knobs

    runtime = knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    return bool(
        getattr(enter, "calls", enter)
        or getattr(leave, "calls", leave)
        or kernel.pre_run_hooks
        or getattr(runtime, "add_stages_inspection_hook", None) is not None
    )


PACKED = 100
"""The first architecture (sm_100) with packed operations."""
FIXED = 13, 1


def fuses(arch: int) -> str | None:
    """Why kernels for an architecture, as in 90 for sm_90, do not round every operation by itself; None if they do."""
    if arch < PACKED:
        return None
    import triton  # here, because it need not be installed

    version = triton.knobs.nvidia.ptxas_blackwell.version
    if tuple(map(int, version.split("."))) >= FIXED:
        return None
    return (
        f"Triton {triton.__version__} compiles with ptxas {version}, which fuses multiplications with additions on "
        "this GPU whatever flags it gets: results differ from the other backends' in their last bits. Use Triton 3.7, "
        "or point TRITON_PTXAS_BLACKWELL_PATH to the ptxas of CUDA 13.1 or later"
    )


@functools.cache
def warn_of_fusion(device: torch.device) -> None:
    """Warns where kernels on a GPU do not give the other backends' bits; once a device."""
    if torch.version.hip is not None:  # AMD's compiler has no ptxas
        return
    major, minor = torch.cuda.get_device_capability(device)
    reason = fuses(10 * major + minor)
    if reason is not None:
        warnings.warn(f"backend = 'triton': {reason}", stacklevel=2)


@functools.cache
def mend() -> None:
    """Lets a scalar of Triton's interpreter be the bound of a loop; harmless where it can be already.

    Before Triton 3.7 the interpreter keeps a scalar as an array of one element and one dimension, which NumPy 2.4 does
    not convert to a number.
    """
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_and_mend(tensor: Any, *scope: Any) -> None:
        patch(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patch_and_mend
