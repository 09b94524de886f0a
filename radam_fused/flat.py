"""``flatten=True``: parameters and gradients of a bucket as views of two flat buffers, laid out as its moments are.

A step is then one segment a row, whatever the number of tensors. Each step looks whether every ``p.grad`` is still the
view it was bound to, as ``model.zero_grad()`` takes it away and fresh gradients come from elsewhere; that is one
comparison of pointers a tensor, in C. Whether a parameter's own storage has been replaced shows in the reference count
of the flat buffer, which every view raises by one; a few parameters a step, in turn, are looked at themselves, for the
case that somebody holds on to the old storage.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from .checks import check_gradients
from .host import same_gradients
from .layout import Bucket, Plan, fingerprint

SAMPLE = 32
"""Parameters whose storage is looked at in each step, in rotation."""


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
                self._check_stray(index, p.grad)
        self.param = torch.zeros(bucket.length, dtype=bucket.dtype, device=bucket.device)
        self.grad = torch.zeros(bucket.length, dtype=bucket.dtype, device=bucket.device)
        self._storage = self.param.untyped_storage()
        self._bound: list[Tensor | None] = [None] * len(bucket.params)  # what each p.grad was when last looked at
        self._missing: list[int] = []
        self._next_sample = 0
        self._runs_of: Plan | None = None
        with torch.no_grad():
            for index, p in enumerate(bucket.params):
                view = bucket.view(self.param, index)
                view.copy_(p)
                p.data = view
                if p.grad is None and attach:
                    p.grad = torch.zeros_like(p)
        bucket.strides = list(bucket.moment_strides)
        self._references = self._count()
        self.collect()

    def _count(self) -> int:
        return torch._C._storage_Use_Count(self._storage._cdata)

    def _check_stray(self, index: int, grad: Tensor) -> None:
        """Raises for a gradient that the flat buffer cannot take as it is."""
        p, name = self._bucket.params[index], self._names[index]
        check_gradients([p], [grad], [name])
        if grad.dtype != self._bucket.dtype:
            raise TypeError(f"flatten=True: gradient of {name} is {grad.dtype}: must be {self._bucket.dtype}, as it is")

    def _check_storage(self, indices: range) -> None:
        base, item = self.param.data_ptr(), self.param.element_size()
        for index in indices:
            p = self._bucket.params[index]
            if p.numel() and (
                p.device != self._bucket.device or p.data_ptr() != base + self._bucket.starts[index] * item
            ):
                raise RuntimeError(
                    f"flatten=True: the storage of {self._names[index]} has been replaced (by .to(), .data = or "
                    "the like), so it is no longer a view of the flat buffer; build the optimizer after moving the "
                    "model, or use flatten=False"
                )

    def check_storage(self) -> None:
        """Raises if a parameter is no longer a view of the flat buffer: at once, or after some steps (see above)."""
        count = len(self._bucket.params)
        references = self._count()
        if references == self._references:
            sample = range(self._next_sample, min(self._next_sample + SAMPLE, count))
            self._next_sample = sample.stop if sample.stop < count else 0
            self._check_storage(sample)
        else:
            self._check_storage(range(count))
            self._references = references

    def collect(self) -> list[int]:
        """Brings every gradient into the flat buffer and returns the segments that have none.

        Raises:
            RuntimeError, TypeError, ValueError: a gradient that the buffer cannot take, before anything is written.
        """
        params = self._bucket.params
        if same_gradients(params, self._bound):
            return self._missing
        strays = [(i, p.grad) for i, p in enumerate(params) if p.grad is not self._bound[i]]
        for index, grad in strays:
            if grad is not None:
                self._check_stray(index, grad)
        for index, grad in strays:
            if grad is None:
                self._bound[index] = None
            else:
                self._bind(index).copy_(grad)
        self._missing = [i for i, grad in enumerate(self._bound) if grad is None]
        return self._missing

    def _bind(self, index: int) -> Tensor:
        """Makes ``p.grad`` a view of the flat buffer, whose values are still to be written."""
        view = self._bucket.view(self.grad, index)
        self._bucket.params[index].grad = self._bound[index] = view
        return view

    def zero_grads(self) -> None:
        """Zeroes every gradient of the bucket with one memset; a gradient that is None stays so."""
        params = self._bucket.params
        if not same_gradients(params, self._bound):
            for index, p in enumerate(params):
                if p.grad is not self._bound[index]:
                    if p.grad is None:
                        self._bound[index] = None
                    else:
                        self._bind(index)
            self._missing = [i for i, grad in enumerate(self._bound) if grad is None]
        self.grad.zero_()

    def runs(self, plan: Plan) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        """Neighbouring segments of the same row, merged: parameters, gradients, segments and rows of a launch."""
        if self._runs_of is not plan:
            self._runs = self._merge(plan)
            self._runs_of = plan
        return self._runs

    def _merge(self, plan: Plan) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        row_of = plan.row_of.tolist()
        present = plan.present
        breaks = [
            k
            for k, after in pairwise(range(len(present)))
            if row_of[k] != row_of[after] or present[after] != present[k] + 1
        ]
        firsts = [0, *(k + 1 for k in breaks)]
        lasts = [*breaks, len(present) - 1]
        starts = [self._bucket.starts[present[k]] for k in firsts]
        ends = [self._bucket.starts[present[k]] + self._bucket.params[present[k]].numel() for k in lasts]
        spans = list(zip(starts, ends, strict=True))
        return (
            [self.param[start:end] for start, end in spans],
            [self.grad[start:end] for start, end in spans],
            torch.tensor([(start, fingerprint([end - start], [1])) for start, end in spans], dtype=torch.int64),
            torch.tensor([row_of[k] for k in firsts], dtype=torch.int64),
        )
