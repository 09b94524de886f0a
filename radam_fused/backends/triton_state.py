"""What a Triton step is given: a bucket's state in whatever form, and the checks of it and of the tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..forms import check_forms
from ..layout import SMALL_ALIGNMENT
from ..rows import Row
from .triton_segments import Segment
from .triton_tables import facts


def as_stored(buffer: Tensor | None) -> Tensor | None:
    """A buffer as a kernel is given it: bfloat16 travels as its bits (`narrow` in the step's kernel)."""
    return buffer.view(torch.int16) if buffer is not None and buffer.dtype == torch.bfloat16 else buffer


class State(NamedTuple):
    """The state of a bucket as the operator is given it."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    scales: Tensor | None
    residue: Tensor | None
    stochastic: bool

    def facts(self) -> object:
        """All that the checks go by (`triton_tables.facts`)."""
        given = [buffer for buffer in self[:4] if buffer is not None]
        return facts(given), self.scales is None, self.residue is None, self.stochastic

    def check(self, params: Sequence[Tensor], segments: Tensor) -> None:
        """Raises where the buffers do not go together, or not with the parameters."""
        exp_avg, exp_avg_sq, scales, residue, stochastic = self
        if not (exp_avg.is_contiguous() and exp_avg_sq.is_contiguous()) or (
            (exp_avg.shape, exp_avg.device) != (exp_avg_sq.shape, exp_avg_sq.device)
        ):
            raise ValueError("exp_avg and exp_avg_sq must be flat buffers of one size, dtype and device")
        check_forms(params, segments, exp_avg, exp_avg_sq, scales, residue, stochastic)

    def plain(self) -> bool:
        """Whether the kernel for state in the dtype of the arithmetic serves it."""
        in_full = self.exp_avg.dtype in (torch.float32, torch.float64)
        return in_full and self.residue is None and not self.stochastic

    def master(self) -> str | None:
        """What the residue is, as the kernel over stored forms calls it."""
        if self.residue is None:
            return None
        return {torch.float32: "fp32", torch.int16: "split"}.get(self.residue.dtype, "kahan")


def check_tables(exp_avg: Tensor, segments: Tensor, row_of: Tensor, rows: Tensor) -> None:
    """Raises for tables of other shapes, dtypes or devices."""
    if rows.dtype != torch.float64 or rows.dim() != 2 or rows.shape[1] != len(Row._fields):
        raise ValueError(f"rows must be float64 of shape (rows, {len(Row._fields)})")
    if rows.device not in (exp_avg.device, torch.device("cpu")):
        raise ValueError(f"rows are on {rows.device}: must be on the CPU or on {exp_avg.device}")
    if segments.dim() != 2 or segments.shape[1] != 2 or row_of.dim() != 1:
        raise ValueError("segments must be of shape (n, 2) and row_of of shape (n): one entry a segment")


def check_segments(segments: Sequence[Segment], exp_avg: Tensor, rows: int) -> None:
    """Raises for a segment whose step would read or write where it must not."""
    for i, (param, _, start, row, origin) in enumerate(segments):
        if param.device != exp_avg.device or param.dtype != segments[0].param.dtype:
            raise ValueError(
                f"tensor {i} of the lists is {param.dtype} on {param.device}: "
                f"must be {segments[0].param.dtype} on {exp_avg.device}"
            )
        if start < 0 or start % SMALL_ALIGNMENT or start + param.numel() > exp_avg.numel():
            raise ValueError(f"tensor {i} of the lists: start {start} out of the buffer, or not a multiple of 64")
        if origin % SMALL_ALIGNMENT:
            raise ValueError(f"tensor {i} of the lists: origin {origin} must be a multiple of {SMALL_ALIGNMENT}")
        if not 0 <= row < rows:
            raise ValueError(f"tensor {i} of the lists: row {row} out of the table of {rows}")
