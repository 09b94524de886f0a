"""The ``cpu`` backend's partial sums of squares over a pointer table: no Python and no dispatcher for a tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cpp_helpers import grad_norm_from_pointers, hold_gradients
from ..numerics.layout import PARTIAL_SUMS


class NativeNorm:
    """The sums of one plan's gradients.

    Args:
        pairs: what `radam_fused._C.read_pairs` takes: the pointer table and what its pairs are checked against.
        device: of the gradients.
        fixed: whether the gradients never move: views of a flat buffer that outlives this.
    """

    def __init__(self, pairs: tuple[int, ...], device: torch.device, fixed: bool) -> None:
        self._pairs = pairs
        self._held = hold_gradients(pairs[2])
        # Kept for all steps: for 8 KiB malloc would first merge all small chunks that are free, as the last gradients.
        self._sums = torch.empty(1, PARTIAL_SUMS, dtype=torch.float64, device=device)
        self._at = self._sums.data_ptr()
        self._fixed = fixed
        self._known = False
        """Whether the table has the addresses of gradients that do not move."""

    def sums(self) -> Tensor | None:
        """``radam_fused::grad_norm_native`` of the gradients; None where it has to be called with their list.

        The next call overwrites the tensor.
        """
        if not grad_norm_from_pointers(self._pairs, self._held, self._at, self._known):
            return None
        self._known = self._fixed
        return self._sums
