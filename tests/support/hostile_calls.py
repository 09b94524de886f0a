"""Calls of the functions of `radam_fused._C` over pointer tables, with guards around everything that they may write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from radam_fused import _C
from radam_fused.numerics.layout import layout_hash

GUARD, CANARY = 64, 77
LENGTH = 256
LONGEST = 20
"""Of the hostile lists."""


def guarded(count: int, dtype: torch.dtype) -> Tensor:
    """Memory with values on both sides that no call may change."""
    return torch.full((count + 2 * GUARD,), CANARY, dtype=dtype)


@dataclass
class Call:
    """A call that works: its arguments, of which hostile ones replace some, and what it may write."""

    arguments: tuple[Any, ...]
    addresses: frozenset[tuple[int, ...]] = frozenset()
    """Positions, in nested tuples as well, which stay as they are."""
    memory: list[Tensor] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)


def pointer_calls() -> dict[str, Callable[[], Call]]:
    """The functions over a pointer table, with a parameter and its gradient."""

    def table() -> tuple[Any, list[Any], list[Tensor]]:
        p = nn.Parameter(torch.ones(LENGTH))
        p.grad = torch.full((LENGTH,), 0.5)
        places = guarded(5, torch.int64)
        segments = torch.tensor([[0, layout_hash(p.shape, p.stride())]])
        at = places[GUARD:].data_ptr()
        places[GUARD : GUARD + 5] = 0
        places[GUARD + 3] = LENGTH
        _C.record_params([p], at)
        return (at, segments.data_ptr(), 1, 0, 0, 0), [p, segments], [places]

    def counts() -> tuple[Any, list[Tensor]]:
        shown, taken = guarded(1, torch.float32), guarded(1, torch.float64)
        return (shown[GUARD:].data_ptr(), taken[GUARD:].data_ptr(), 1, 0), [shown, taken]

    def tensors(places: Tensor, segments: Tensor) -> tuple[Tensor | None, ...]:
        table, moments = places[GUARD:-GUARD].view(1, 5), [torch.zeros(LENGTH) for _ in range(2)]
        return (table, *moments, segments, torch.zeros(1, dtype=torch.int64), None, None, None)

    def read() -> Call:
        pairs, kept, memory = table()
        return Call(pairs, frozenset({(0,), (1,)}), memory, kept)

    def prepare() -> Call:
        pairs, kept, memory = table()
        return Call((pairs, True, tensors(*memory, kept[1]), False), frozenset({(0, 0), (0, 1)}), memory, kept)

    def step() -> Call:
        pairs, kept, memory = table()
        numbers, more = counts()
        prepared = _C.prepare_step(pairs, True, tensors(*memory, kept[1]), False)
        scalars = torch.zeros(1, 11, dtype=torch.float64)
        return Call((prepared, scalars, False, numbers), frozenset({(3, 0), (3, 1), (3, 3)}), memory + more, kept)

    def together() -> Call:
        pairs, kept, memory = table()
        prepared = _C.prepare_step(pairs, True, tensors(*memory, kept[1]), False)
        first, second = counts(), counts()
        scalars = torch.zeros(1, 11, dtype=torch.float64)
        q = nn.Parameter(torch.ones(LENGTH))
        grads = [torch.full((LENGTH,), 0.5)]
        moments = [torch.zeros(LENGTH) for _ in range(2)]
        buffers = (*moments, kept[1], torch.zeros(1, dtype=torch.int64), None, None, None)
        steps = [(prepared, scalars, first[0]), ([q], grads, buffers, False, True, scalars, second[0])]
        addresses = frozenset({(0, 0, 2, 0), (0, 0, 2, 1), (0, 0, 2, 3), (0, 1, 6, 0), (0, 1, 6, 1), (0, 1, 6, 3)})
        return Call((steps, False), addresses, [*memory, *first[1], *second[1]], [*kept, q])

    def fill() -> Call:
        pairs, kept, memory = table()
        index, rows = torch.zeros(1, dtype=torch.int64), guarded(9, torch.int64)
        arguments = (pairs, _C.hold_gradients(1), index.data_ptr(), 0, 1024, rows[GUARD:].data_ptr(), False)
        return Call(arguments, frozenset({(0, 0), (0, 1), (2,), (3,), (5,)}), [*memory, rows], [*kept, index])

    def fill_norm() -> Call:
        pairs, kept, memory = table()
        rows = guarded(9, torch.int64)
        arguments = (pairs, _C.hold_gradients(1), 1024, rows[GUARD:].data_ptr())
        return Call(arguments, frozenset({(0, 0), (0, 1), (3,)}), [*memory, rows], kept)

    def norm() -> Call:
        pairs, kept, memory = table()
        sums = guarded(1024, torch.float64)
        arguments = (pairs, _C.hold_gradients(1), sums[GUARD:].data_ptr(), False)
        # With gradients that are said to be known, the addresses in the table are taken on trust.
        return Call(arguments, frozenset({(0, 0), (0, 1), (2,), (3,)}), [*memory, sums], kept)

    def count() -> Call:
        numbers, memory = counts()
        return Call((numbers,), frozenset({(0, 0), (0, 1), (0, 3)}), memory)

    def hold() -> Call:
        return Call((2,), frozenset(), [])

    def release() -> Call:
        return Call((_C.hold_gradients(2),), frozenset(), [])

    return {
        "hold_gradients": hold,
        "release_gradients": release,
        "read_pairs": read,
        "pairs_unmoved": read,
        "prepare_step": prepare,
        "step_from_pointers": step,
        "step_together": together,
        "fill_segments": fill,
        "fill_norm_segments": fill_norm,
        "grad_norm_from_pointers": norm,
        "count_step": count,
    }
