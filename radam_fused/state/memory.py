"""Memory for buffers that every step reads and writes from end to end."""

from __future__ import annotations

import ctypes
import math
import mmap

import torch
from torch import Tensor

HUGE_PAGE = getattr(mmap, "MADV_HUGEPAGE", None)
"""Linux's advice of that name, see madvise(2); None on other systems."""
LEAST = 4 * 2**20
"""Bytes of a buffer that is worth advising: two huge pages."""


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, pinned: bool = False) -> Tensor:
    """Zeros, on the CPU in huge pages where they are large and the system leaves that to programs.

    A step passes through such a buffer once, and with pages of 4 KiB spends some 3 % of its time on finding them
    (docs/performance.md). All of it is used, so nothing is wasted.
    """
    large = math.prod(shape) * dtype.itemsize >= LEAST
    real = not torch._C._len_torch_dispatch_stack()  # what a mode makes may have no memory
    if HUGE_PAGE is None or device.type != "cpu" or pinned or not large or not real:
        return torch.zeros(shape, dtype=dtype, device=device, pin_memory=pinned)
    made = torch.empty(shape, dtype=dtype, device=device)
    begin = -(-made.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (made.data_ptr() + made.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    # A kernel that was built without huge pages refuses; the buffer works all the same.
    ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), HUGE_PAGE)
    return made.zero_()  # by all threads, so on the memory of those that will step it
