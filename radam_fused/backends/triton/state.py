"""What a Triton step is given: a bucket's state in whatever form."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .tables import facts


def as_stored(buffer: Tensor | None) -> Tensor | None:
    """A buffer as a kernel is given it: bfloat16 travels as its bits (`narrow` in the step's kernel)."""
    return buffer.view(torch.int16) if buffer is not None and buffer.dtype == torch.bfloat16 else buffer


class State(NamedTuple):
    """The state of a bucket as the operator is given it."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    scales: Tensor | None
    master_buffer: Tensor | None
    stochastic: bool

    def facts(self) -> object:
        """All that the checks go by (`triton_tables.facts`)."""
        given = [buffer for buffer in self[:4] if buffer is not None]
        return facts(given), self.scales is None, self.master_buffer is None, self.stochastic

    def plain(self) -> bool:
        """Whether the kernel for state in the dtype of the arithmetic serves it."""
        in_full = self.exp_avg.dtype in (torch.float32, torch.float64)
        return in_full and self.master_buffer is None and not self.stochastic

    def master_format(self) -> str | None:
        """The format of the master buffer, as the kernel for low-precision state calls it."""
        if self.master_buffer is None:
            return None
        return {torch.float32: "fp32", torch.int16: "split"}.get(self.master_buffer.dtype, "kahan")
