"""Views of flat buffers with storages of their own, and whether they still are where they were made.

Some tools identify tensors by their storages: safetensors, torch.save of one entry, pickle, Inductor. With them, a view
that shares its buffer's storage stands for the whole buffer. DLPack makes a tensor over the same memory that has a
storage of its own and keeps the buffer alive.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _storage_Use_Count

from ..cpp_helpers import HAS_POINTER_PATH, record_views, views_intact
from ..dtensor import is_sharded, local
from ..modes import real

LOOKED_AT = 512
"""Up to this number of tensors, which most models are below, each step checks every one."""
SAMPLE = 4
"""Above it, each step checks this many, in rotation, if the number of references to their buffer is the same."""


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor has memory of its own to look at: those of the meta device and of FakeTensorMode have none."""
    return type(tensor) is Tensor and not tensor.is_meta


def own_view(buffer: Tensor, shape: Sequence[int], strides: Sequence[int], start: int) -> Tensor:
    """A view of a flat buffer that has a storage of its own, of just its own elements.

    Args:
        buffer: 1-d and contiguous.
        shape: of the view.
        strides: of the view, in elements.
        start: the place of its first element in the buffer.
    """
    view = buffer.as_strided(shape, strides, start)
    if not has_memory(buffer):
        return view
    return torch._C._from_dlpack(torch._C._to_dlpack(view))


def warn_of_shared(entry: Mapping[str, Any], name: str) -> None:
    """Warns where a state tensor in shared memory is about to be copied into a buffer, which is not shared.

    Args:
        entry: of ``optimizer.state``.
        name: what errors call the parameter.
    """
    for key, value in entry.items():
        if isinstance(value, Tensor) and value.device.type == "cpu" and has_memory(value) and value.is_shared():
            warnings.warn(
                f"{key!r} of {name} is in shared memory; FusedRAdam copies its values into a buffer of its own, which "
                "other processes do not see",
                stacklevel=2,
            )
            return


class PublishedViews:
    """The views of a bucket's buffers that ``optimizer.state`` shows.

    Each view holds one reference to its buffer. Where user code gives one of them other memory (``.data =``,
    ``.set_``, ``share_memory_``), that reference is gone, so the number of references shows it without a check of each.

    Args:
        buffers: the flat tensors.

    Attributes:
        few: what ``views_intact`` takes to look at all of them; None where `intact` does more than that.
    """

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        self.few: tuple[int, int] | None = None
        self._buffers = [b.untyped_storage() for b in buffers if has_memory(b)]
        self._storages = [storage._cdata for storage in self._buffers]
        self._is_sharded = False
        self._references: list[int] = []
        self._views: list[Tensor] = []
        self._shown: list[Any] = []  # the DTensor around each view, or None
        self._table: Tensor | None = None
        self._next = 0

    def record(self, tensors: Sequence[Any]) -> None:
        """Remembers tensors that `optimizer.state` shows, all of them, as they are now."""
        tensors = [t for t in tensors if has_memory(local(t))]
        self._views = [local(t) for t in tensors]
        self._shown = [t if is_sharded(t) else None for t in tensors]
        with real():
            self._table = torch.zeros(len(self._views), 2, dtype=torch.int64, device="cpu")
        if not HAS_POINTER_PATH or not record_views(self._views, self._table.data_ptr()):
            self._table[:, 1] = torch.tensor([v.data_ptr() for v in self._views], dtype=torch.int64, device="cpu")
            self._pointers = self._table[:, 1].tolist()
            self._table = None
        self._next = 0
        self._address = 0 if self._table is None else self._table.data_ptr()
        self._is_sharded = any(t is not None for t in self._shown)
        self._references = [_storage_Use_Count(data) for data in self._storages]
        plain = self._table is not None and not self._is_sharded
        self.few = (self._address, len(self._views)) if plain and 0 < len(self._views) <= LOOKED_AT else None

    def intact(self, thoroughly: bool = False) -> bool:
        """Whether all views are where they were made, as far as a step looks.

        Args:
            thoroughly: look at every one.
        """
        count = len(self._views)
        if count <= LOOKED_AT:
            return not count or self._in_place(0, count)
        references = [_storage_Use_Count(data) for data in self._storages]
        if thoroughly or references != self._references:
            self._references = references
            return self._in_place(0, count)
        begin, end = self._next, min(self._next + SAMPLE, count)
        self._next = end if end < count else 0
        return self._in_place(begin, end)

    def _in_place(self, begin: int, end: int) -> bool:
        if self._is_sharded and any(
            shown is not None and shown._local_tensor is not view
            for shown, view in zip(self._shown[begin:end], self._views[begin:end], strict=True)
        ):
            return False
        if self._table is None:
            return all(self._views[i].data_ptr() == self._pointers[i] for i in range(begin, end))
        return views_intact(self._address + 16 * begin, end - begin)
