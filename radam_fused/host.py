"""Loops over parameters that every step makes, in C where the extension is there, and what goes to a device."""

from __future__ import annotations

from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor

try:
    from ._C import describe, gradients, holds_exactly, identical, prepare_describe, same_gradients

    _SAMPLES = [torch.empty(3), torch.nn.Parameter(torch.empty(5))]
    DESCRIBES = prepare_describe(
        Tensor,
        torch.nn.Parameter,
        torch._C.TensorBase,
        [(t, t._cdata, t.data_ptr(), t.numel()) for t in _SAMPLES],
        object.__basicsize__,
        torch._C.TensorBase.__basicsize__,
    )
    """Whether `describe` works with this torch."""
except ImportError:
    DESCRIBES = False

    def describe(
        params: list[Tensor], described: int, segments: int, dtype: int, device_type: int, device_index: int
    ) -> list[Tensor] | None:
        """Of C++ alone: see csrc/cpu/describe.cpp."""
        return None

    def identical(a: list[Any], b: list[Any]) -> bool:
        """Whether two lists hold the very same objects."""
        return len(a) == len(b) and all(map(is_, a, b))

    def holds_exactly(entries: dict[Any, Any], values: list[Any]) -> bool:
        """Whether the values of a dict are the very objects of a list, in order."""
        return identical(list(entries.values()), values)

    def same_gradients(params: list[Tensor], grads: list[Tensor | None]) -> bool:
        """Whether ``params[i].grad is grads[i]`` for every i."""
        return len(params) == len(grads) and all(map(is_, map(attrgetter("grad"), params), grads))

    def gradients(params: list[Tensor]) -> tuple[list[Tensor], list[int]]:
        """The gradients of parameters, and the indices of those that have none."""
        grads = [p.grad for p in params]
        return [g for g in grads if g is not None], [i for i, g in enumerate(grads) if g is None]


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device, through pinned memory so that nothing waits; itself where it is there."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)  # the allocator keeps pinned memory until the copy is done


__all__ = ["DESCRIBES", "describe", "gradients", "holds_exactly", "identical", "same_gradients", "upload"]
