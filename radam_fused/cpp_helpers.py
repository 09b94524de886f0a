"""The loops over parameters that every step makes: in C, or in Python where the extension was not built."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

try:
    from ._C import (
        counts_shown,
        find_tensor_offset,
        gradients,
        pairs_unmoved,
        read_pairs,
        record_params,
        record_views,
        share_no_memory,
        step_from_pointers,
        unchanged,
        views_intact,
        write_scalars,
    )

    with _disable_current_modes():  # a FakeTensorMode around this import would make tensors without memory
        _SAMPLES = [torch.empty(n, dtype=torch.float32, device="cpu") for n in (3, 5)]
        _SAMPLES[1] = torch.nn.Parameter(_SAMPLES[1])
        HAS_POINTER_PATH = find_tensor_offset(
            Tensor,
            torch.nn.Parameter,
            [(t, t._cdata, t.data_ptr(), t.numel()) for t in _SAMPLES],
            object.__basicsize__,
            torch._C.TensorBase.__basicsize__,
        )
    """Whether a step by addresses works with this torch (addresses.py)."""
    HAS_LOOPS = True
    """Whether the loops below are there in C."""
except ImportError:
    HAS_POINTER_PATH = HAS_LOOPS = False

    def _missing(*_: Any) -> Any:
        raise NotImplementedError("radam_fused._C is not there; ask HAS_LOOPS or HAS_POINTER_PATH first")

    counts_shown = read_pairs = record_params = record_views = _missing  # type: ignore[assignment]
    pairs_unmoved = step_from_pointers = unchanged = views_intact = _missing  # type: ignore[assignment]

    def write_scalars(address: int, groups: list[dict[str, Any]], rows: list[tuple[int, int]], taken: int) -> bool:
        """False: `radam_fused.numerics.scalars.compute_scalars` makes them."""
        return False

    def share_no_memory(tensors: list[Tensor]) -> bool:
        """False: `radam_fused.numerics.overlaps.layers` has to look."""
        return False

    def gradients(params: list[Tensor]) -> tuple[list[Tensor], list[int]]:
        """The gradients of parameters, and the indices of those that have none."""
        grads = [p.grad for p in params]
        return [g for g in grads if g is not None], [i for i, g in enumerate(grads) if g is None]


NATIVE_DTYPE = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
"""``param_dtype`` of ``step_from_pointers``: csrc/numerics/dtypes.h."""
NATIVE_DEVICE = {"cpu": 0, "cuda": 1}
"""``device_type`` of `read_pairs`: torch's own numbers."""

__all__ = [
    "HAS_LOOPS",
    "HAS_POINTER_PATH",
    "NATIVE_DEVICE",
    "NATIVE_DTYPE",
    "counts_shown",
    "gradients",
    "pairs_unmoved",
    "read_pairs",
    "record_params",
    "record_views",
    "share_no_memory",
    "step_from_pointers",
    "unchanged",
    "views_intact",
    "write_scalars",
]
