"""Tables that the Triton kernels read: what a launch uploads, in one copy, and what it finds there from the last one.

A table is made from facts (addresses, sizes, strides, rows), and those of the next launch are mostly the same; then it
is neither made nor uploaded again. What is on the device is never written: a table that changes gets new memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from ...numerics.layout import is_dense

ALIGNED = 16
"""Bytes: the width of a vector access."""
SEGMENT_COLUMNS = (
    "param_address",
    "grad_address",
    "start",
    "length",
    "scalar_index",
    "first_tile",
    "aligned",
    "strides_at",
    "rng_offset",
)
"""Of the segment table of a step, int64: constants.py has their numbers."""
NORM_COLUMNS = ("address", "length", "first_tile", "tiles", "full_tiles", "strides_at")
"""Of the segment table of a norm, int64: ``full_tiles`` counts those that are full and aligned."""
KEPT = 2048
"""Tables that are kept at most, the least recently used making room."""
_EVEN = 2
"""Parts of an upload start at multiples of so many 8-byte numbers, so that Triton compiles for one alignment only."""


class Table(NamedTuple):
    """A table that a launch reads.

    Attributes:
        make: gives its numbers, 8 bytes each, on the CPU.
        place: whose table it is, in the place of that one's last; None for one that is not kept.
        facts: cache key: everything that ``make`` uses.
    """

    make: Callable[[], Tensor]
    place: Hashable = None
    facts: object = None


class _Kept(NamedTuple):
    facts: object
    stream: int
    on_device: Tensor


_kept: dict[Hashable, _Kept] = {}
_lock = threading.Lock()
_captured: list[Tensor] = []
"""What graphs refer to. A graph does not report when it is destroyed, so this stays."""


def facts(tensors: Sequence[Tensor]) -> object:
    """The cache key of a list of tensors: a kernel makes no difference between two lists with equal keys."""
    return list(
        zip(
            map(Tensor.data_ptr, tensors),
            map(attrgetter("device"), tensors),
            map(attrgetter("dtype"), tensors),
            map(attrgetter("shape"), tensors),
            map(Tensor.stride, tensors),
            strict=True,
        )
    )


def on_device(device: torch.device, tables: Sequence[Table]) -> list[Tensor]:
    """The tables on the device, int64, for launches on the current stream; those that are not there go in one copy.

    A table serves the stream that uploaded it, behind its copy; memory of one that is dropped comes back to that
    stream, behind the launches that read it. A graph may be captured with a table of another stream: capturing begins
    with a synchronisation, and the table stays permanently.
    """
    stream, capturing = _current_stream(device)
    found = [_find(device, table, stream, capturing) for table in tables]
    missing = [k for k, kept in enumerate(found) if kept is None]
    uploaded = _upload(device, [tables[k].make() for k in missing], capturing)
    for k, part in zip(missing, uploaded, strict=True):
        found[k] = part
        if tables[k].place is not None and not capturing:  # a capture copies nothing until it is replayed
            _keep(device, tables[k], _Kept(tables[k].facts, stream, part))
    result = [part for part in found if part is not None]
    if capturing:
        _captured.extend(result)
    return result


def _current_stream(device: torch.device) -> tuple[int, bool]:
    """The handle of the device's current stream, and whether that records a graph."""
    if device.type != "cuda":
        return 0, False
    return torch._C._cuda_getCurrentRawStream(device.index), torch.cuda.is_current_stream_capturing()


def host_memory(words: int, device: torch.device) -> Tensor:
    """int64 (words,), to be uploaded: the pinned allocator keeps memory that is dropped until its copy is done."""
    return torch.empty(words, dtype=torch.int64, device="cpu", pin_memory=device.type == "cuda")


def _copy(host: Tensor, device: torch.device) -> Tensor:
    """An asynchronous copy, on the current stream."""
    return host.to(device, non_blocking=True)


def _find(device: torch.device, table: Table, stream: int, capturing: bool) -> Tensor | None:
    with _lock:
        kept = _kept.pop((device, table.place), None)
        if kept is None:
            return None
        _kept[device, table.place] = kept  # as the one used last
    return kept.on_device if (kept.stream == stream or capturing) and kept.facts == table.facts else None


def _keep(device: torch.device, table: Table, kept: _Kept) -> None:
    with _lock:
        _kept.pop((device, table.place), None)
        _kept[device, table.place] = kept
        if len(_kept) > KEPT:
            del _kept[next(iter(_kept))]


def _upload(device: torch.device, parts: list[Tensor], capturing: bool) -> list[Tensor]:
    if not parts:
        return []
    padded = [torch.nn.functional.pad(part.reshape(-1).view(torch.int64), (0, -part.numel() % _EVEN)) for part in parts]
    # The pinned allocator keeps memory that is dropped until the copy is done.
    count, pinned = sum(map(Tensor.numel, padded)), device.type == "cuda"
    host = torch.empty(count, dtype=torch.int64, device="cpu", pin_memory=pinned)
    torch.cat(padded, out=host)
    if capturing:
        _captured.append(host)  # each replay copies from it
    return list(_copy(host, device).split(list(map(Tensor.numel, padded))))


class Segment(NamedTuple):
    """A parameter, its gradient, the start of its moments, the index of its scalars, the offset of its random bits."""

    param: Tensor
    grad: Tensor
    start: int
    scalar_index: int
    rng_offset: int


def tile_map(lengths: Sequence[int], tile: int) -> Tensor:
    """Which segment each tile belongs to, int32, in pairs as int64."""
    tiles = torch.tensor([-(-length // tile) for length in lengths], dtype=torch.int64, device="cpu")
    segments = torch.repeat_interleave(torch.arange(len(lengths), dtype=torch.int32, device="cpu"), tiles)
    return torch.nn.functional.pad(segments, (0, segments.numel() % 2)).view(torch.int64)


def segment_table(segments: Sequence[Segment], tile: int) -> Tensor:
    """The table, and behind it the strides of the segments that are not plain arrays."""
    table: list[int] = []
    strides: list[int] = []
    first_tile = 0
    for param, grad, start, scalar_index, rng_offset in segments:
        length = param.numel()
        addresses = param.data_ptr(), grad.data_ptr()
        own = _strides(param, grad) if length else None
        aligned = own is None and all(address % ALIGNED == 0 for address in addresses)
        strides_at = -1 if own is None else len(SEGMENT_COLUMNS) * len(segments) + len(strides)
        table += (*addresses, start, length, scalar_index, first_tile, aligned, strides_at, rng_offset)
        strides += own or ()
        first_tile += -(-length // tile)
    return torch.tensor(table + strides, dtype=torch.int64, device="cpu")


def _strides(param: Tensor, grad: Tensor) -> list[int] | None:
    """The number of dimensions, then size, param and grad stride of each, in the order of the moments, inner first.

    None where both are plain arrays in that order. Must match ``plain`` in csrc/args/segment.h.
    """
    if param.is_contiguous() and grad.is_contiguous():
        return None
    dims = list(range(param.dim()))
    if is_dense(param):
        dims.sort(key=list(param.stride()).__getitem__, reverse=True)
        ordered = [d for d in dims if param.shape[d] != 1]
        if is_dense(grad) and [grad.stride(d) for d in ordered] == [param.stride(d) for d in ordered]:
            return None
    strides = [len(dims)]
    for d in reversed(dims):
        strides += [param.shape[d], param.stride(d), grad.stride(d)]
    return strides
