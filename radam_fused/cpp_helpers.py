"""The loops over parameters that every step makes: in C++, or in Python if the extension was not built."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

POINTER_TABLE = "RADAM_FUSED_POINTER_TABLE"
"""Environment variable, read at import: ``0`` switches the pointer path off; ``1`` is the default."""


def _pointer_table_allowed() -> bool:
    value = os.environ.get(POINTER_TABLE, "1")
    if value not in ("0", "1"):
        raise ValueError(f"{POINTER_TABLE} = {value!r}: must be '0' or '1'")
    return value == "1"


_ALLOWED = _pointer_table_allowed()

try:
    from ._C import (
        count_step,
        counts_shown,
        fill_norm_segments,
        fill_segments,
        find_tensor_offset,
        grad_norm_from_pointers,
        gradients,
        hold_gradients,
        pairs_unmoved,
        prepare_step,
        read_pairs,
        record_params,
        record_views,
        release_gradients,
        share_no_memory,
        step_from_pointers,
        step_together,
        unchanged,
        views_intact,
        write_scalars,
    )

    with _disable_current_modes():  # under a FakeTensorMode the samples would have no memory
        _SAMPLES = [torch.empty(n, dtype=torch.float32, device="cpu") for n in (3, 5)]
        _SAMPLES[1] = torch.nn.Parameter(_SAMPLES[1])
        HAS_POINTER_PATH = _ALLOWED and find_tensor_offset(
            Tensor,
            torch.nn.Parameter,
            [(t, t._cdata, t.data_ptr(), t.numel()) for t in _SAMPLES],
            object.__basicsize__,
            torch._C.TensorBase.__basicsize__,
        )
    """Whether a step may take the pointer path (step/pointer_table.py), which rests on private facts of torch.

    - A tensor's Python object holds its ``at::Tensor`` at one offset, whatever the tensor: ``find_tensor_offset`` finds
      the offset from the two samples above, whose ``_cdata``, address and size Python knows, and takes no other object
      for a tensor.
    - libtorch exports the few C++ methods that csrc/python/libtorch_symbols.h declares.
    - ``torch._C`` says whether dispatch modes, function modes or a profiler are active (``can_bypass_dispatcher``).

    Where the first does not hold, and with ``RADAM_FUSED_POINTER_TABLE=0``, every step goes through the dispatcher: the
    same bits and the same errors, in several times the host's time (docs/performance.md).
    """
    HAS_LOOPS = True
    """Whether the extension was built, with the loops in C++."""
except ImportError:
    HAS_POINTER_PATH = HAS_LOOPS = False

    def _missing(*_: Any) -> Any:
        raise NotImplementedError("radam_fused._C is not there; ask HAS_LOOPS or HAS_POINTER_PATH first")

    count_step = fill_norm_segments = fill_segments = _missing  # type: ignore[assignment]
    grad_norm_from_pointers = hold_gradients = release_gradients = _missing  # type: ignore[assignment]
    counts_shown = read_pairs = record_params = record_views = _missing  # type: ignore[assignment]
    pairs_unmoved = prepare_step = step_from_pointers = step_together = _missing  # type: ignore[assignment]
    unchanged = views_intact = _missing  # type: ignore[assignment]

    def write_scalars(address: int, groups: list[dict[str, Any]], rows: list[tuple[int, int]], taken: int) -> bool:
        """Returns False: `radam_fused.numerics.scalars.compute_scalars` has to compute them."""
        return False

    def share_no_memory(tensors: list[Tensor]) -> bool:
        """Returns False, for unknown: `radam_fused.numerics.overlaps.layers` has to find out."""
        return False

    def gradients(params: list[Tensor]) -> tuple[list[Tensor], list[int]]:
        """The gradients of the parameters that have one, and the indices of those that have none."""
        grads = [p.grad for p in params]
        return [g for g in grads if g is not None], [i for i, g in enumerate(grads) if g is None]


NATIVE_DTYPE = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
"""``param_dtype`` of ``step_from_pointers``; must match csrc/numerics/dtypes.h."""
NATIVE_DEVICE = {"cpu": 0, "cuda": 1}
"""``device_type`` of `read_pairs`; torch's own numbers."""

__all__ = [
    "HAS_LOOPS",
    "HAS_POINTER_PATH",
    "NATIVE_DEVICE",
    "NATIVE_DTYPE",
    "count_step",
    "counts_shown",
    "fill_norm_segments",
    "fill_segments",
    "grad_norm_from_pointers",
    "gradients",
    "hold_gradients",
    "pairs_unmoved",
    "prepare_step",
    "read_pairs",
    "record_params",
    "record_views",
    "release_gradients",
    "share_no_memory",
    "step_from_pointers",
    "step_together",
    "unchanged",
    "views_intact",
    "write_scalars",
]
