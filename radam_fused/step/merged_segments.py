"""``flatten=True``: neighbouring segments of a plan that a step launches as one, over the flat buffers."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..cpp_helpers import HAS_POINTER_PATH
from ..modes import real
from ..numerics.layout import ALIGNMENT, layout_hash
from ..state.bucket import Bucket
from ..state.flat_buffers import FlatBuffers
from .plan import Plan
from .pointer_table import PointerTable


class MergedSegments(NamedTuple):
    """What a launch takes instead of its plan's segments: views of the flat buffers, and the tables for them."""

    params: list[Tensor]
    grads: list[Tensor]
    segments: Tensor
    scalar_index: Tensor
    rng_offsets: Tensor | None
    """Where the random numbers of each begin; None where a step uses no random bits."""


def merged_segments(bucket: Bucket, flat: FlatBuffers, plan: Plan) -> MergedSegments:
    """Merges neighbouring segments that use the same scalars; the result is kept in the plan.

    Args:
        bucket: the plan's.
        flat: its flat buffers, whose views `FlatBuffers.collect` has just found in place.
        plan: with at least one segment.
    """
    if plan.merged is None:
        plan.merged = merged = _merge(bucket, flat, plan)
        if HAS_POINTER_PATH and not bucket.is_fake:
            for p, grad in zip(merged.params, merged.grads, strict=True):
                p.grad = grad  # where the pointer path reads it
            tables = merged.segments, merged.scalar_index, merged.rng_offsets
            plan.pointer_table = PointerTable(bucket, merged.params, *tables)
        flat.note_views()
    return plan.merged


def _is_contiguous_with(bucket: Bucket, index: int, after: int) -> bool:
    """Whether two neighbouring segments give the same bits stepped as one: not in every state format."""
    if bucket.scales is not None and bucket.params[index].numel() % ALIGNMENT:
        return False  # the padding between the two would count among the last block's elements
    distance = bucket.starts[after] - bucket.starts[index]
    return not bucket.uses_random_bits or bucket.rng_offset(after) - bucket.rng_offset(index) == distance


def _merge(bucket: Bucket, flat: FlatBuffers, plan: Plan) -> MergedSegments:
    with real():
        scalar_index = plan.scalar_index.tolist()
    present = plan.present
    breaks = [
        k
        for k, after in pairwise(range(len(present)))
        if scalar_index[k] != scalar_index[after]
        or present[after] != present[k] + 1
        or not _is_contiguous_with(bucket, present[k], present[after])
    ]
    firsts = [0, *(k + 1 for k in breaks)]
    lasts = [*breaks, len(present) - 1]
    starts = [bucket.starts[present[k]] for k in firsts]
    ends = [bucket.starts[present[k]] + bucket.params[present[k]].numel() for k in lasts]
    spans = list(zip(starts, ends, strict=True))
    with real():
        segments = torch.tensor([(s, layout_hash([e - s], [1])) for s, e in spans], dtype=torch.int64, device="cpu")
        indices = torch.tensor([scalar_index[k] for k in firsts], dtype=torch.int64, device="cpu")
    rng_offsets = None
    if bucket.uses_random_bits:
        rng_offsets = torch.tensor([bucket.rng_offset(present[k]) for k in firsts], dtype=torch.int64, device="cpu")
    params, grads = ([buffer[start:end] for start, end in spans] for buffer in (flat.param, flat.grad))
    return MergedSegments(params, grads, segments, indices, rng_offsets)
