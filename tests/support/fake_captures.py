"""CUDA graphs for CPU tensors: what is captured runs nothing, and every replay does all of it again.

Some tensors are taken to be on the device. While a `Graph` is captured, operations on them are recorded: what they
would write stays as it was, and what they would return is memory of the graph that holds nothing of use. A replay first
zeroes the graph's memory, then does what was recorded, in order. What the graph refers to it does not keep alive, as a
CUDA graph does not: a replay that finds it gone fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map

from radam_fused import device as captures
from radam_fused.state import bucket, bucket_builder, step_counts
from radam_fused.state import per_param as separate
from radam_fused.step import collect, plan, scalars


def spoil(tensor: Tensor) -> None:
    """Fills memory that nothing has been written to: NaN, and for indices 0, which the operators here can check."""
    tensor.fill_(float("nan") if tensor.is_floating_point() else 0)


class _Reference:
    """A tensor whose memory something else has to keep alive."""

    def __init__(self, tensor: Tensor) -> None:
        self._storage = StorageWeakRef(tensor.untyped_storage())
        self._kind = tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()

    def tensor(self) -> Tensor:
        assert not self._storage.expired(), "a replay refers to memory that has been freed"
        storage = torch.UntypedStorage._new_with_weak_ptr(self._storage.cdata)
        dtype, shape, stride, offset = self._kind
        return torch.empty(0, dtype=dtype).set_(storage, offset, shape, stride)


class Graph:
    """What a capture has recorded."""

    def __init__(self) -> None:
        self.nodes: list[Callable[[], None]] = []
        self.memory: list[Tensor] = []

    def replay(self) -> None:
        for tensor in self.memory:
            tensor.zero_()
        for node in self.nodes:
            node()


class Device(TorchDispatchMode):
    """The device, and the graph that is being captured, if any."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self._storages = [StorageWeakRef(t.untyped_storage()) for t in tensors]
        self.graph: Graph | None = None
        self.uploads = 0

    def holds(self, tensor: Any) -> bool:
        if not isinstance(tensor, Tensor):
            return False
        own = tensor.untyped_storage()._cdata
        return any(reference.cdata == own and not reference.expired() for reference in self._storages)

    def add(self, tensor: Tensor) -> None:
        if not self.holds(tensor):
            self._storages.append(StorageWeakRef(tensor.untyped_storage()))

    def upload(self, tensor: Tensor, device: torch.device) -> Tensor:
        """`radam_fused.device.upload`: its copy is made at once, or in every replay."""
        with _disable_current_modes():  # this is what is done, not what is recorded
            return self._upload(tensor)

    def _upload(self, tensor: Tensor) -> Tensor:
        there = tensor.clone()
        self.add(there)
        if self.graph is not None:
            self.uploads += 1
            spoil(there)
            pinned = tensor.clone()
            captures.keep(pinned, there)  # as device.upload does: test_upload_keeps_what_a_replay_reads
            source, target = _Reference(pinned), _Reference(there)

            def copy() -> None:
                target.tensor().copy_(source.tensor())

            self.graph.nodes.append(copy)
        return there

    @contextmanager
    def capture(self) -> Iterator[Graph]:
        self.graph = graph = Graph()
        try:
            with self:
                yield graph
        finally:
            self.graph = None

    @contextmanager
    def replacing_cuda(self) -> Iterator[Device]:
        """Lets the package take CPU tensors for the device's."""
        capturing = lambda device: self.graph is not None  # noqa: E731
        with (
            patch.object(scalars, "upload", self.upload),
            patch.object(plan, "upload", self.upload),
            patch.object(
                bucket.Bucket, "may_capture", property(lambda self: True, lambda self, value: None), create=True
            ),
            patch.object(step_counts, "upload", self.upload),
            patch.object(step_counts, "readable", lambda device: False),
            patch.object(scalars, "capturing", capturing),
            patch.object(bucket_builder, "capturing", capturing),
            patch.object(separate, "capturing", capturing),
            patch.object(collect, "capturing", capturing),
        ):
            yield self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {**dict(zip([a.name for a in func._schema.arguments], args, strict=False)), **(kwargs or {})}
        flat = [t for value in given.values() for t in (value if isinstance(value, (list, tuple)) else [value])]
        if self.graph is None or not any(map(self.holds, flat)):
            return func(*args, **(kwargs or {}))
        written = []
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = given.get(argument.name)
                written += [t for t in (value if isinstance(value, list) else [value]) if isinstance(t, Tensor)]
        saved = [(t, t.clone()) for t in written]
        result = func(*args, **(kwargs or {}))
        for tensor, before in saved:
            tensor.copy_(before)
        results = [r for r in (result if isinstance(result, (list, tuple)) else [result]) if isinstance(r, Tensor)]
        new = [r for r in results if not any(isinstance(t, Tensor) and shares(r, t) for t in flat)]
        if not new and not written:
            return result  # a view
        for tensor in new:
            spoil(tensor)
            self.add(tensor)
        self.graph.memory += new
        # Tables that the host reads are read now; everything else where the replay finds it.
        recorded = tree_map(
            lambda v: _Reference(v) if self.holds(v) else v.clone() if isinstance(v, Tensor) else v, args
        )
        named = tree_map(lambda v: _Reference(v) if self.holds(v) else v, kwargs or {})

        def node() -> None:
            found = tree_map(lambda v: v.tensor() if isinstance(v, _Reference) else v, recorded)
            again = func(*found, **tree_map(lambda v: v.tensor() if isinstance(v, _Reference) else v, named))
            made = [r for r in (again if isinstance(again, (list, tuple)) else [again]) if isinstance(r, Tensor)]
            for to, value in zip(results, made, strict=True):
                if any(to is tensor for tensor in new):
                    to.copy_(value)

        self.graph.nodes.append(node)
        return result


def shares(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage()._cdata == b.untyped_storage()._cdata
