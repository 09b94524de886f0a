"""A kernel that writes where it must not: a sanitizer that does not notice it is none."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _stray(pointer, offset):
    tl.store(pointer + offset, 1.0)


def write_out_of_bounds() -> None:
    """Writes a gibibyte behind a tensor of 16 elements, on the GPU."""
    target = torch.zeros(16, device="cuda")
    _stray[(1,)](target, 1 << 28)
    torch.cuda.synchronize()
