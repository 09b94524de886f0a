"""The ``triton`` backend's step over a pointer table: no Python for a tensor, and the compiled kernel called directly.

C++ reads the tensors and fills in the table of segments (csrc/python/segment_table.cpp). It is uploaded when an address
has changed, in one copy with the scalars. Checks and whatever else stays the same are made once, for all steps of a
plan.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ...cpp_helpers import NATIVE_DTYPE, count_step, fill_segments, hold_gradients, release_gradients
from ...numerics.layout import SMALL_ALIGNMENT
from ..operator_args import StepArgs
from ..operator_checks import check_step
from . import tables
from .availability import require
from .launch import Arguments, Launcher, addresses_of, on_device_of
from .step import arguments, kernel_for, programs, starts_anywhere, tile_of
from .tables import SEGMENT_COLUMNS, tile_map

_WORD = 8
"""Bytes."""
_DTYPES = {number: dtype for dtype, number in NATIVE_DTYPE.items()}


class PointerStep:
    """The steps of one plan.

    Args:
        pairs: what `radam_fused._C.read_pairs` takes: the pointer table and what its pairs are checked against.
        args: of the first step; its ``grads`` are not used.

    Raises:
        RuntimeError, TypeError, ValueError: an argument that does not fit.
    """

    def __init__(self, pairs: tuple[int, ...], args: StepArgs) -> None:
        args = args._replace(grads=args.params)
        require("step", args.exp_avg.device)
        check_step(args, SMALL_ALIGNMENT)
        self._pairs = pairs
        self._held = hold_gradients(pairs[2])
        self._args = args
        self._buffers = [buffer for buffer in args.state if buffer is not None]
        self._found_at = list(map(Tensor.data_ptr, self._buffers))
        self._device = device = args.exp_avg.device
        self._scalars_shape = args.scalars.shape
        tile = tile_of(device)
        lengths = [param.numel() for param in args.params]
        self._tiles = sum(-(-length // tile) for length in lengths)
        self._programs = programs(self._tiles, device)
        self._tile_map = tile_map(lengths, tile)
        self._rows = torch.zeros(len(lengths) * len(SEGMENT_COLUMNS), dtype=torch.int64, device="cpu")
        offsets = args.rng_offsets
        self._rows_at = self._rows.data_ptr()
        self._fill = (
            args.scalar_index.data_ptr(),
            0 if offsets is None else offsets.data_ptr(),
            tile,
            self._rows_at,
        )
        self._row_words = self._rows.numel()
        self._row_bytes = _WORD * self._row_words
        # Both parts of an upload start at multiples of 16 bytes, so that Triton compiles for one alignment only.
        self._scalar_bytes = _WORD * args.scalars.numel()
        self._scalar_words = args.scalars.numel() + args.scalars.numel() % 2
        self._anywhere = starts_anywhere(args)
        self._launchers: dict[tuple[int, bool], Launcher] = {}
        self._stream: int | None = None
        """Whose the tables on the device are: they serve the launches behind their copies."""
        self._tile_segment = self._rows
        self._table, self._table_begins = self._rows, 0
        """What was uploaded last with a table of segments, and the number that this begins at."""
        self._outdated = True
        """Whether the rows are others than those on the device: also after an upload that found no memory."""
        self._static: Arguments = ()
        """The launch's arguments, of which only the addresses of the table and of the scalars change."""

    def step(self, scalars: Tensor, zero_grads: bool, counts: tuple[int, int, int, int] | None) -> bool:
        """The step and its count; False, with nothing done, where it has to pass tensor lists.

        Args:
            scalars: as of `StepArgs`.
            zero_grads: likewise.
            counts: what `radam_fused._C.count_step` takes.
        """
        stream, capturing = tables._current_stream(self._device)
        if (
            capturing  # what a graph refers to has to stay: `tables.on_device` sees to that
            or scalars.shape != self._scalars_shape
            or list(map(Tensor.data_ptr, self._buffers)) != self._found_at
        ):
            return False
        try:  # another thread may replace the gradients meanwhile, which the launch is to find alive
            filled = fill_segments(self._pairs, self._held, *self._fill, zero_grads)
            if filled is None:
                return False
            grad_dtype, changed = filled
            self._outdated = self._outdated or changed
            if self._tiles:
                with on_device_of(self._args.exp_avg):
                    self._start(grad_dtype, scalars, zero_grads, stream)
            count_step(counts)
        finally:
            release_gradients(self._held)
        return True

    def _start(self, grad_dtype: int, scalars: Tensor, zero_grads: bool, stream: int) -> None:
        if stream != self._stream:
            self._tile_segment = tables._copy(self._tile_map, self._device).view(torch.int32)
            self._stream, self._outdated, self._static = stream, True, ()
        changed = self._outdated
        from_host = scalars.device.type == "cpu"
        words = self._scalar_words if from_host else 0
        scalars_at = scalars.data_ptr()
        if from_host or changed:
            host = tables.host_memory(words + changed * self._row_words, self._device)
            at = host.data_ptr()
            if from_host:
                ctypes.memmove(at, scalars_at, self._scalar_bytes)
            if changed:
                ctypes.memmove(at + _WORD * words, self._rows_at, self._row_bytes)
            there = tables._copy(host, self._device)
            if changed:
                self._table, self._table_begins, self._outdated = there, words, False
            if from_host:
                scalars, scalars_at = there, there.data_ptr()
        launcher = self._launchers.get((grad_dtype, zero_grads))
        if launcher is None:
            kernel, constants = kernel_for(self._args, _DTYPES[grad_dtype], self._fill[2], zero_grads, self._anywhere)
            launcher = self._launchers[grad_dtype, zero_grads] = Launcher(kernel, constants)

        def tensors() -> Arguments:
            table, numbers = self._table[self._table_begins :], scalars.view(torch.float64)
            return arguments(self._args, table, self._tile_segment, numbers, self._tiles)

        if not self._static:
            self._static = addresses_of(tensors())
        _, at_tiles, _, _, *rest = self._static
        table_at = self._table.data_ptr() + _WORD * self._table_begins
        launcher.start(self._programs, (table_at, at_tiles, table_at, scalars_at, *rest), tensors)
