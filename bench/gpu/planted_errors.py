"""A planted out-of-bounds access: the negative control of the sanitizer, which must report it."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _write_at(pointer, offset):
    tl.store(pointer + offset, 1.0)


def write_out_of_bounds() -> None:
    """Writes one gibibyte beyond a tensor of 16 elements on the GPU."""
    target = torch.zeros(16, device="cuda")
    _write_at[(1,)](target, 1 << 28)
    torch.cuda.synchronize()
