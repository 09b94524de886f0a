"""``flatten=True``: parameters and gradients of a bucket as views of two flat buffers, laid out as its moments are.

A step is then one segment a row, whatever the number of tensors. What that costs is noticing, in constant time, that
somebody has taken a view away: ``model.zero_grad()`` sets ``p.grad`` to None, a fresh gradient comes from elsewhere, a
parameter moves to another device. Every view holds a reference to its buffer's storage, so the number of references
changes; a few tensors a step, in turn, are looked at themselves, for the case that something else has taken a
reference in the same moment.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from .checks import check_gradients
from .layout import Bucket, Plan, moment_strides

SAMPLE = 32
"""Tensors looked at in each step, in rotation."""


def _references(buffer: torch.UntypedStorage) -> int:
    return torch._C._storage_Use_Count(buffer._cdata)


class FlatBuffers:
    """The flat parameters and gradients of a bucket.

    Attributes:
        param, grad: ``bucket.length`` elements of the parameters' dtype; zero between the segments.
    """

    def __init__(self, bucket: Bucket, names: list[str]) -> None:
        memory: dict[int, str] = {}
        for p, name in zip(bucket.params, names, strict=True):
            if p.numel() and memory.setdefault(p.data_ptr(), name) != name:
                raise ValueError(
                    f"flatten=True: {name} and {memory[p.data_ptr()]} share memory; pass one of them, or flatten=False"
                )
        self._bucket = bucket
        self._names = names
        self.param = torch.zeros(bucket.length, dtype=bucket.dtype, device=bucket.device)
        self.grad = torch.zeros(bucket.length, dtype=bucket.dtype, device=bucket.device)
        self._storages = self.param.untyped_storage(), self.grad.untyped_storage()
        self._missing: list[int] = []
        self._next_sample = 0
        self._runs_of: Plan | None = None
        with torch.no_grad():
            for index, p in enumerate(bucket.params):
                view = bucket.view(self.param, index)
                view.copy_(p)
                p.data = view
                if p.grad is not None:
                    check_gradients([p], [p.grad], [names[index]])
                if p.grad is not None or p.requires_grad:
                    self._attach(index)
        self._attached = self._count()

    def _count(self) -> tuple[int, ...]:
        return tuple(map(_references, self._storages))

    def _attach(self, index: int) -> None:
        """Makes ``p.grad`` the flat buffer's view, with the value that it has (zero where it is None)."""
        p = self._bucket.params[index]
        view = self._bucket.view(self.grad, index)
        if p.grad is None:
            view.zero_()
        else:
            view.copy_(p.grad)
        p.grad = view

    def _address(self, buffer: Tensor, index: int) -> int:
        return buffer.data_ptr() + self._bucket.starts[index] * buffer.element_size()

    def _is_attached(self, index: int) -> bool:
        p = self._bucket.params[index]
        grad = p.grad
        return (
            p.data_ptr() == self._address(self.param, index)
            and grad is not None
            and grad.data_ptr() == self._address(self.grad, index)
            and grad.stride() == moment_strides(p)
        )

    def _looks_attached(self) -> bool:
        if self._missing or self._count() != self._attached:
            return False
        count = len(self._bucket.params)
        sample = range(self._next_sample, min(self._next_sample + SAMPLE, count))
        self._next_sample = sample.stop if sample.stop < count else 0
        return all(self._is_attached(i) for i in sample if self._bucket.params[i].numel())

    def collect(self) -> list[int]:
        """Brings every gradient into the flat buffer and returns the segments that have none.

        Raises:
            RuntimeError: a parameter is no longer a view of the flat buffer.
        """
        if self._looks_attached():
            return self._missing
        params = self._bucket.params
        for index, p in enumerate(params):
            if p.numel() and (p.device != self._bucket.device or p.data_ptr() != self._address(self.param, index)):
                raise RuntimeError(
                    f"flatten=True: the storage of {self._names[index]} has been replaced (by .to(), .data = or "
                    "the like), so it is no longer a view of the flat buffer; build the optimizer after moving the "
                    "model, or use flatten=False"
                )
        present = [i for i, p in enumerate(params) if p.grad is not None]
        strays = [i for i in present if params[i].numel() and not self._is_attached(i)]
        check_gradients(
            [params[i] for i in strays],
            [g for i in strays if (g := params[i].grad) is not None],
            [self._names[i] for i in strays],
        )
        for i in strays:
            self._attach(i)
        absent = set(range(len(params))).difference(present)
        self._missing = sorted(absent)
        self._attached = self._count()
        return self._missing

    def zero_grads(self) -> None:
        """Zeroes every gradient of the bucket with one memset; a gradient that is None stays so."""
        self.collect()
        self.grad.zero_()

    def runs(self, plan: Plan) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        """Neighbouring segments of the same row, merged: parameters, gradients, starts and rows of a launch."""
        if self._runs_of is not plan:
            self._runs = self._merge(plan)
            self._runs_of = plan
        return self._runs

    def _merge(self, plan: Plan) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        row_of = plan.row_of.tolist()
        order = range(len(plan.present))
        breaks = [
            k
            for k, after in pairwise(order)
            if row_of[k] != row_of[after] or plan.present[after] != plan.present[k] + 1
        ]
        firsts = [0, *(k + 1 for k in breaks)]
        lasts = [*breaks, len(plan.present) - 1]
        starts = [self._bucket.starts[plan.present[k]] for k in firsts]
        ends = [self._bucket.starts[plan.present[k]] + self._bucket.params[plan.present[k]].numel() for k in lasts]
        spans = list(zip(starts, ends, strict=True))
        return (
            [self.param[start:end] for start, end in spans],
            [self.grad[start:end] for start, end in spans],
            torch.tensor(starts, dtype=torch.int64),
            torch.tensor([row_of[k] for k in firsts], dtype=torch.int64),
        )
