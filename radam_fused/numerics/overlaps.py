"""Finds parameters that share memory: ``decoder.weight = nn.Parameter(encoder.weight)``, views of one buffer.

torch.optim steps such parameters one after the other. A launch steps its segments concurrently, so each of them gets a
bucket of its own: launches of several buckets follow one another.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn.parameter import is_lazy

from ..cpp_helpers import HAS_POINTER_PATH, record_views, views_intact
from ..dtensor import local
from ..tensor_kinds import is_fake


class Span(NamedTuple):
    """The bytes between a tensor's first element and its last."""

    space: Hashable
    """The address space: the addresses of two spans can be compared if they have the same."""
    begin: int
    end: int
    place: int
    """The tensor's index in its list."""


def span(tensor: Tensor, index: int) -> Span | None:
    """The span of a strided tensor; None for a tensor without elements in memory."""
    tensor = local(tensor)
    if is_lazy(tensor) or is_functorch_wrapped_tensor(tensor):
        return None
    if tensor.layout != torch.strided or tensor.is_nested or tensor.numel() == 0:
        return None
    item = tensor.element_size()
    reach = item * (1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)))
    if tensor.is_meta or is_fake(tensor):
        space: Hashable = tensor.untyped_storage()._cdata
        begin = int(tensor.storage_offset()) * item
    else:
        space, begin = tensor.device, tensor.data_ptr()
    return Span(space, begin, begin + reach, index)


def clusters(tensors: Sequence[Tensor]) -> list[list[Span]]:
    """Groups of overlapping spans, each group in the tensors' order. A span that overlaps no other is in no group."""
    spans = [found for index, tensor in enumerate(tensors) if (found := span(tensor, index)) is not None]
    order = {space: rank for rank, space in enumerate(dict.fromkeys(found.space for found in spans))}
    spans.sort(key=lambda found: (order[found.space], found.begin))
    result: list[list[Span]] = []
    end = 0
    for k, found in enumerate(spans):
        if k > 0 and found.space == spans[k - 1].space and found.begin < end:
            result[-1].append(found)
            end = max(end, found.end)
        else:
            result.append([found])
            end = found.end
    return [sorted(cluster, key=lambda found: found.place) for cluster in result if len(cluster) > 1]


def layers(tensors: Sequence[Tensor]) -> dict[int, int]:
    """By the index of each tensor that shares memory with earlier ones: how many launches have to precede its own."""
    found: dict[int, int] = {}
    for later, earlier in sharing(tensors):
        found[later] = max(found.get(later, 0), 1 + found.get(earlier, 0))
    return found


def sharing(tensors: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
    """Pairs of indices of tensors that share memory, the later one first; within a group in the tensors' order."""
    for cluster in clusters(tensors):
        for k, one in enumerate(cluster):
            for other in cluster[:k]:
                meet = one.begin < other.end and other.begin < one.end
                if meet and not _interleaved(tensors, one, other):
                    yield one.place, other.place


def _interleaved(tensors: Sequence[Tensor], one: Span, other: Span) -> bool:
    """True if two tensors are disjoint sets of columns of one matrix: their spans overlap, their elements do not."""
    a, b = local(tensors[one.place]), local(tensors[other.place])
    pitch = max(stride for size, stride in zip(a.shape, a.stride(), strict=True) if size > 1) if a.numel() > 1 else 0
    if pitch * a.element_size() == 0 or a.element_size() != b.element_size():
        return False
    widths = []
    for tensor in (a, b):
        dims = [(size, stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
        if sum(stride == pitch for _, stride in dims) != 1 or any(stride > pitch for _, stride in dims):
            return False
        widths.append(1 + sum((size - 1) * stride for size, stride in dims if stride != pitch))
    distance, rest = divmod(other.begin - one.begin, a.element_size())
    distance %= pitch
    return rest == 0 and widths[0] <= distance and distance + widths[1] <= pitch


class Places:
    """Records the addresses of tensors, to notice when one is moved.

    Args:
        tensors: of torch's own types, or DTensors.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = [local(tensor) for tensor in tensors]
        self._table = torch.zeros(len(tensors), 2, dtype=torch.int64, device="cpu")
        self._known = HAS_POINTER_PATH and record_views(self._tensors, self._table.data_ptr())
        self._address = self._table.data_ptr()
        self._spans = [] if self._known else self._look()

    def _look(self) -> list[Span | None]:
        return [span(tensor, index) for index, tensor in enumerate(self._tensors)]

    def intact(self) -> bool:
        """Whether all tensors are still stored where they were recorded."""
        return views_intact(self._address, len(self._tensors)) if self._known else self._spans == self._look()


def check_freed(tensor: Tensor, name: str) -> None:
    """Raises ValueError for a tensor whose storage does not hold all of its elements."""
    found, held = span(tensor, 0), tensor.untyped_storage().nbytes()
    if found is not None and found.end - found.begin + tensor.storage_offset() * tensor.element_size() > held:
        raise ValueError(
            f"{name} of shape {tuple(tensor.shape)}: its storage has {held} bytes and does not hold all of its "
            "elements; it was freed or made smaller (resize_)"
        )
