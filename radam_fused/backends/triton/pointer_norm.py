"""The ``triton`` backend's partial sums of squares over a pointer table: no Python for a tensor, as `PointerStep`.

C++ reads the gradients and fills in their table (csrc/python/segment_table.cpp), which is uploaded when an address has
changed.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ...cpp_helpers import NATIVE_DTYPE, fill_norm_segments, hold_gradients, release_gradients
from ...numerics.layout import NORM_TILE, PARTIAL_SUMS
from . import tables
from .grad_norm import INTERPRETED_PROGRAMS, arguments, kernel_for, shares, skips_empty
from .launch import Arguments, Launcher, on_device_of
from .tables import NORM_COLUMNS

_WORD = 8
"""Bytes."""
_SHARES = 2 * PARTIAL_SUMS
"""Numbers of the table before its segments."""
_DTYPES = {number: dtype for dtype, number in NATIVE_DTYPE.items()}


class PointerNorm:
    """The sums of one plan's gradients.

    Args:
        pairs: what `radam_fused._C.read_pairs` takes: the pointer table and what its pairs are checked against.
        device: of the gradients.
        fixed: whether the gradients never move: views of a flat buffer that outlives this.
    """

    def __init__(self, pairs: tuple[int, ...], device: torch.device, fixed: bool) -> None:
        self._pairs = pairs
        self._held = hold_gradients(pairs[2])
        self._device = device
        self._skips = skips_empty(device)
        self._programs = INTERPRETED_PROGRAMS if self._skips else PARTIAL_SUMS
        self._rows = torch.zeros(pairs[2], len(NORM_COLUMNS), dtype=torch.int64, device="cpu")
        self._rows_at = self._rows.data_ptr()
        self._shares = self._table = torch.zeros(_SHARES, dtype=torch.int64, device="cpu")
        self._laid_out = 0, 0
        """The rows and tiles that the shares are of: what no step of a plan changes."""
        self._sums = torch.empty(1, PARTIAL_SUMS, dtype=torch.float64, device=device)
        """Of every step on one stream: its scalars have read them before the next step's norm is written."""
        self._fixed = fixed
        self._known: tuple[int, int, int] | None = None
        """What `fill_norm_segments` has said of gradients that do not move: their dtype, rows and tiles."""
        self._stream: int | None = None
        self._outdated = True
        """Whether the rows are others than those on the device: also after an upload that found no memory."""
        self._launchers: dict[int, Launcher] = {}

    def sums(self) -> Tensor | None:
        """``radam_fused::grad_norm_triton`` of the gradients; None where it has to be called with their list."""
        stream, capturing = tables._current_stream(self._device)
        if capturing:  # what a graph refers to has to stay: `tables.on_device` sees to that
            return None
        if self._known is not None:
            self._add_up(*self._known, stream)
            return self._sums
        try:  # another thread may replace the gradients meanwhile, which the launch is to find alive
            filled = fill_norm_segments(self._pairs, self._held, NORM_TILE, self._rows_at)
            if filled is None:
                return None
            grad_dtype, rows, tiles, changed = filled
            if tiles == 0:
                return None
            self._outdated = self._outdated or changed
            self._add_up(grad_dtype, rows, tiles, stream)
            if self._fixed:
                self._known = grad_dtype, rows, tiles
        finally:
            release_gradients(self._held)
        return self._sums

    def _add_up(self, grad_dtype: int, rows: int, tiles: int, stream: int) -> None:
        if stream != self._stream:
            self._sums, self._stream, self._outdated = torch.empty_like(self._sums), stream, True
        if self._skips:
            self._sums.zero_()
        with on_device_of(self._sums):
            if self._outdated:
                self._upload(rows, tiles)
                self._outdated = False
            self._start(grad_dtype, tiles)

    def _upload(self, rows: int, tiles: int) -> None:
        """The shares and the rows, in one copy."""
        if self._laid_out != (rows, tiles):
            self._shares = shares(self._rows[:rows, NORM_COLUMNS.index("first_tile")].contiguous(), tiles)
            self._laid_out = rows, tiles
        words = rows * len(NORM_COLUMNS)
        host = tables.host_memory(_SHARES + words, self._device)
        ctypes.memmove(host.data_ptr(), self._shares.data_ptr(), _WORD * _SHARES)
        ctypes.memmove(host.data_ptr() + _WORD * _SHARES, self._rows_at, _WORD * words)
        self._table = tables._copy(host, self._device)

    def _start(self, grad_dtype: int, tiles: int) -> None:
        launcher = self._launchers.get(grad_dtype)
        if launcher is None:
            launcher = self._launchers[grad_dtype] = Launcher(*kernel_for(_DTYPES[grad_dtype], self._skips))
        at = self._table.data_ptr()

        def tensors() -> Arguments:
            return arguments(self._table, self._sums, tiles)

        launcher.start(self._programs, (at + _WORD * _SHARES, at, at, self._sums.data_ptr(), tiles), tensors)
