"""Whether Triton's kernels can run here, and what every launch of one needs to know.

With ``TRITON_INTERPRET=1`` in the environment before Triton is imported, kernels run interpreted on CPU tensors.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch

from .compat import mend, warn_of_fusion

WARPS = 4


def interpreted() -> bool:
    """Whether Triton interprets kernels on the CPU instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def unavailable() -> str | None:
    """Why this backend cannot run here, or None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install 'radam_fused[triton]'"
    if not (torch.cuda.is_available() or interpreted()):
        return "torch sees no GPU (TRITON_INTERPRET=1 runs the kernels interpreted on the CPU, for tests)"
    return None


def require(operator: str, device: torch.device) -> None:
    """Raises where a Triton kernel cannot run on tensors of a device.

    Raises:
        RuntimeError: with the reason.
    """
    reason = unavailable()
    if reason is None and device.type != "cuda" and not interpreted():
        reason = f"the tensors are on {device}: TRITON_INTERPRET=1 runs the kernels interpreted on the CPU"
    if reason is not None:
        raise RuntimeError(f"radam_fused::{operator}_triton: {reason}")
    if device.type == "cuda":
        warn_of_fusion(device)
    else:
        mend()


def stored(dtype: torch.dtype) -> Any:
    """What a kernel takes a tensor's elements for: bfloat16 travels as its bits (`narrow` in the step's kernel)."""
    import triton.language as tl

    return {
        torch.float32: tl.float32,
        torch.float64: tl.float64,
        torch.float16: tl.float16,
        torch.bfloat16: tl.int16,
    }[dtype]
