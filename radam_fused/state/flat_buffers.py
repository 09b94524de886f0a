"""``flatten=True``: parameters and gradients of a bucket as views of two flat buffers, laid out as its moments are.

A step then has few segments, whatever the number of tensors (step/merged_segments.py). It must notice when a view is
replaced: ``model.zero_grad()`` sets ``p.grad`` to None, autograd or user code assigns a new gradient, a parameter
moves. With at most `LOOKED_AT` parameters, each step compares every parameter and gradient with its place in the
buffer. With more, it compares the number of references to each buffer's storage, in constant time: `FlatBuffers` keeps
no views, so each view in place is one reference. User code may take a reference at the moment that a view goes, so each
step also compares `SAMPLE` parameters, in rotation.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor

from ..cpp_helpers import HAS_POINTER_PATH, NATIVE_DEVICE, NATIVE_DTYPE, pairs_unmoved, record_params
from ..numerics.tensor_checks import check_gradients, check_stored
from ..tensor_kinds import is_fake
from . import memory
from .bucket import Bucket
from .transaction import Transaction
from .views import has_memory

LOOKED_AT = 512
"""Up to this number, which most models are below, each step compares every tensor (10 us)."""
SAMPLE = 4
"""Above it, how many each step compares, in rotation."""


def check_not_shared(tensor: Tensor, name: str) -> None:
    """Raises ValueError for a tensor in shared memory: other processes would not see a flat buffer that replaces it.

    Args:
        tensor: a parameter or a gradient.
        name: what errors call it.
    """
    if not is_fake(tensor) and tensor.device.type == "cpu" and tensor.layout == torch.strided and tensor.is_shared():
        raise ValueError(f"flatten=True: {name} is in shared memory, which a flat buffer is not: use flatten=False")


def _rebind(param: Tensor, data: Tensor, grad: Tensor | None) -> None:
    """Undoes `FlatBuffers.bind` for one parameter: gives it the memory and the gradient that it had."""
    param.grad = None
    param.data = data
    param.grad = grad


class FlatBuffers:
    """The flat parameters and gradients of a bucket.

    Args:
        bucket: its parameters become views.
        names: of the parameters, for errors.
        attach: give a parameter that has no gradient a zero one; without, it stays without.

    Attributes:
        param, grad: ``bucket.length`` elements of the parameters' dtype; zero between the segments.

    Raises:
        RuntimeError, TypeError, ValueError: a gradient that the buffer cannot take, before anything is written.
    """

    def __init__(self, bucket: Bucket, names: list[str], attach: bool) -> None:
        self._bucket = bucket
        self._names = names
        for index, p in enumerate(bucket.params):
            if p.grad is not None:
                self._check_detached(index, p.grad)
        self.param = memory.zeros((bucket.length,), bucket.dtype, bucket.device)
        self.grad = memory.zeros((bucket.length,), bucket.dtype, bucket.device)
        self._storages = self.param.untyped_storage(), self.grad.untyped_storage()
        self._next = 0
        self._attach = attach
        with torch.no_grad():
            for index, p in enumerate(bucket.params):
                bucket.view(self.param, index).copy_(p)
                if p.grad is not None:
                    bucket.view(self.grad, index).copy_(p.grad)
        self._is_missing = [p.grad is None and not attach for p in bucket.params]
        self._references = [-1, -1]

    def bind(self, transaction: Transaction) -> None:
        """Makes the parameters and their gradients views of the buffers, which hold their values already.

        Args:
            transaction: gives every parameter its own memory back if this or a later part of it fails.
        """
        bucket = self._bucket
        with torch.no_grad():
            for index, p in enumerate(bucket.params):
                transaction.on_failure(_rebind, p, p.data, p.grad)
                grad = None if self._is_missing[index] else bucket.view(self.grad, index)
                p.grad = None  # of other strides, or on its way to another device, it would not fit the new memory
                p.data = bucket.view(self.param, index)
                p.grad = grad
        bucket.strides = list(bucket.moment_strides)
        self._places = self._pair_table()
        self._all_pairs = None if self._places is None else self._pairs(0, len(self._is_missing))
        self._count(0)
        self.record_gradients()

    def _pair_table(self) -> Tensor | None:
        """int64 (n, 5), on the CPU: a ``TensorPair`` (csrc/args/step_args.h) per parameter: where its views are."""
        bucket = self._bucket
        if bucket.is_fake:
            return None
        places = torch.zeros(len(bucket.params), 5, dtype=torch.int64, device="cpu")
        if not HAS_POINTER_PATH or not record_params(bucket.params, places.data_ptr()):
            return None
        starts = torch.tensor(bucket.starts, dtype=torch.int64, device="cpu")
        places[:, 1] = self.param.data_ptr() + starts * self.param.element_size()
        places[:, 3] = torch.tensor([p.numel() for p in bucket.params], dtype=torch.int64, device="cpu")
        return places

    def _counted(self, which: int) -> bool:
        """Whether a buffer has as many references as after the last check of all views; 0 is param, 1 is grad."""
        return torch._C._storage_Use_Count(self._storages[which]._cdata) == self._references[which]

    def _count(self, which: int) -> None:
        self._references[which] = torch._C._storage_Use_Count(self._storages[which]._cdata)

    def _check_detached(self, index: int, grad: Tensor) -> None:
        """Raises for a gradient that the flat buffer cannot take as it is."""
        p, name = self._bucket.params[index], self._names[index]
        check_gradients([p], [grad], [name])
        check_not_shared(grad, f"gradient of {name}")
        if has_memory(grad) and not grad._is_zerotensor():
            check_stored(**{f"gradient of {name}": grad})
        if grad.dtype != self._bucket.dtype:
            raise TypeError(f"flatten=True: gradient of {name} is {grad.dtype}: must be {self._bucket.dtype}, as it is")

    def views_intact(self) -> bool:
        """Whether all views are in place, as far as a step checks (see above)."""
        count = len(self._is_missing)
        if count <= LOOKED_AT:
            return pairs_unmoved(*self._all_pairs) if self._all_pairs is not None else self._in_place(0, count)
        begin, end = self._next, min(self._next + SAMPLE, count)
        self._next = end if end < count else 0
        return self._counted(0) and self._counted(1) and self._in_place(begin, end)

    def _in_place(self, begin: int, end: int) -> bool:
        if self._places is None:
            return all(self._is_stored(index) and self._is_bound(index) for index in range(begin, end))
        return pairs_unmoved(*self._pairs(begin, end))

    def _pairs(self, begin: int, end: int) -> tuple[int, int, int, int, int, int]:
        """What `pairs_unmoved` takes to look at some of the views."""
        assert self._places is not None
        bucket, line = self._bucket, self._places.element_size() * self._places.shape[1]
        table = self._places.data_ptr() + begin * line
        device = NATIVE_DEVICE[bucket.device.type], bucket.device.index or 0
        return table, 0, end - begin, NATIVE_DTYPE[bucket.dtype], *device

    def _is_stored(self, index: int) -> bool:
        """Whether a parameter is the buffer's view."""
        p = self._bucket.params[index]
        return p.numel() == 0 or (p.device == self._bucket.device and self._is_view(p, self.param, index))

    def _is_view(self, tensor: Tensor, buffer: Tensor, index: int) -> bool:
        """Whether a tensor begins where a segment of a buffer does."""
        place = self._bucket.starts[index]
        if self._bucket.is_fake:
            same = tensor.untyped_storage()._cdata == buffer.untyped_storage()._cdata
            return same and tensor.storage_offset() == place
        return tensor.data_ptr() == buffer.data_ptr() + place * buffer.element_size()

    def note_views(self) -> None:
        """Counts the references to both buffers again, after views for a launch were made of them."""
        self._count(0)
        self._count(1)

    def check_storage(self) -> None:
        """Raises RuntimeError if a parameter is no longer a view of the flat buffer."""
        for index, name in enumerate(self._names):
            if not self._is_stored(index):
                raise RuntimeError(
                    f"flatten=True: the storage of {name} has been replaced (by .to(), .data = or "
                    "the like), so it is no longer a view of the flat buffer; build the optimizer after moving the "
                    "model, or use flatten=False"
                )
        self._count(0)

    def _is_bound(self, index: int) -> bool:
        """Whether a gradient is the buffer's view, or None where it was None."""
        grad = self._bucket.params[index].grad
        if grad is None or self._is_missing[index]:
            return grad is None and self._is_missing[index]
        if is_batchedtensor(grad):  # which has no address
            return False
        if grad.layout != torch.strided or grad.dtype != self._bucket.dtype or grad.device != self._bucket.device:
            return False
        same_memory = grad.numel() == 0 or self._is_view(grad, self.grad, index)
        return same_memory and grad.stride() == self._bucket.moment_strides[index]

    def _detached(self) -> list[tuple[int, Tensor | None]]:
        """Every gradient that is not a view of the flat buffer, with its segment."""
        params = self._bucket.params
        return [(index, params[index].grad) for index in range(len(params)) if not self._is_bound(index)]

    def collect(self) -> list[int]:
        """Brings every gradient into the flat buffer and returns the segments that have none.

        Raises:
            RuntimeError, TypeError, ValueError: a parameter that is no view any more, or a gradient that the buffer
                cannot take, before anything is written.
        """
        if not self.views_intact():
            self.check_storage()
            self._rebind()
        return self._missing

    def _rebind(self) -> None:
        detached = self._detached()
        for index, grad in detached:
            if grad is not None:
                self._check_detached(index, grad)
        for index, grad in detached:
            self._bind(index, grad)
        del detached
        self.record_gradients()

    def _bind(self, index: int, grad: Tensor | None) -> None:
        """Makes ``p.grad`` a view of the flat buffer with the values of `grad`; None stays None."""
        self._is_missing[index] = grad is None
        if grad is not None:
            view = self._bucket.view(self.grad, index)
            view.copy_(grad)
            self._bucket.params[index].grad = view

    def record_gradients(self) -> None:
        """Notes which gradients are None and the number of references, after every gradient has been checked."""
        self._missing = [index for index, missing in enumerate(self._is_missing) if missing]
        if self._places is not None:
            distance = self.grad.data_ptr() - self.param.data_ptr()
            self._places[:, 2] = (self._places[:, 1] + distance).clamp(min=1)  # an empty buffer's address is 0
            self._places[self._missing, 2] = 0  # which stands for None
        self._count(1)

    def views_to_attach(self) -> list[tuple[int, Tensor | None]]:
        """For every gradient that is not a view of the flat buffer its segment and a view; None where it is None."""
        if self.views_intact():
            return []
        return [(i, None if grad is None else self._bucket.view(self.grad, i)) for i, grad in self._detached()]

    def zero_grads(self, views: list[tuple[int, Tensor | None]]) -> None:
        """Zeroes every gradient of the bucket with one memset; a gradient that is None stays so.

        Args:
            views: of `views_to_attach`. The values of a detached gradient, which may not even fit, do not matter.
        """
        self.grad.zero_()
        for index, view in views:
            self._is_missing[index] = view is None
            self._bucket.params[index].grad = view
