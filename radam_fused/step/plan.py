"""What one step launches over a bucket, built once and kept for as long as the same parameters get gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ..modes import real
from ..numerics.layout import layout_hash
from ..numerics.scalars import ScalarBuffer

if TYPE_CHECKING:
    from ..numerics.overlaps import Places
    from ..state.bucket import Bucket
    from .pointer_table import Addresses


@dataclass
class Plan:
    """What one step launches over a bucket, for as long as the same parameters get gradients."""

    missing: list[int]
    """Segments without a gradient; they and their step counts stay."""
    present: list[int]
    params: list[Tensor]
    segments: Tensor
    """int64 (n, 2), on the CPU: the start of each present segment in the flat buffers, and its `layout_hash`."""
    row_of: Tensor
    """int64, on the CPU: the row of each present segment."""
    rows: list[tuple[int, int]]
    """For each row its parameter group, and a segment that has taken as many steps as all of the row."""
    row_table: ScalarBuffer
    """Where the host writes the rows of a step."""
    counting: tuple[int, int, int, int] | None = None
    """See `Bucket.counting`."""
    first: bool = True
    """Whether this plan has not been launched yet."""
    counts_known: bool = True
    """Whether the host knows which segments have the same count; a capture cannot wait to find out."""
    tables: tuple[Tensor, Tensor] | None = None
    """What the rows operator takes of this plan, where a device counts: see `Bucket.tables`."""
    origins: Tensor | None = None
    """int64, on the CPU: where the random numbers of each present segment begin; None where none are drawn."""
    places: Places | None = None
    """Where the parameters are stored, as of when it was last found that none shares memory with another."""
    addresses: Addresses | Literal[False] | None = None
    """See `radam_fused.step.pointer_table`; False where there is not that way, None until a step asks."""


def build_plan(bucket: Bucket, missing: list[int], apart: bool = False) -> Plan:
    """The plan of a step in which these segments have no gradient; ``apart`` with a row for each of the others."""
    absent = set(missing)
    present = [i for i in range(len(bucket.params)) if i not in absent]
    taken = range(len(bucket.params)) if apart else bucket.counts.classes(absent)
    row_indices: dict[tuple[int, int], int] = {}
    row_of = [row_indices.setdefault((bucket.groups[i], taken[i]), len(row_indices)) for i in present]
    first_of: dict[int, int] = {}
    for i, row in zip(present, row_of, strict=True):
        first_of.setdefault(row, i)
    segments = [(bucket.starts[i], layout_hash(bucket.shapes[i], bucket.strides[i])) for i in present]
    with real():
        return _built(bucket, missing, present, row_of, list(first_of.values()), segments)


def _built(
    bucket: Bucket,
    missing: list[int],
    present: list[int],
    row_of: list[int],
    leaders: list[int],
    segments: list[tuple[int, int]],
) -> Plan:
    """A plan whose tables the host and C can read."""
    origins = torch.tensor([bucket.origin(i) for i in present], dtype=torch.int64, device="cpu")
    return Plan(
        missing=missing,
        present=present,
        params=[bucket.params[i] for i in present],
        segments=torch.tensor(segments, dtype=torch.int64, device="cpu").reshape(-1, 2),
        row_of=torch.tensor(row_of, dtype=torch.int64, device="cpu"),
        rows=[(bucket.groups[i], i) for i in leaders],
        row_table=ScalarBuffer(len(leaders)),
        origins=origins if bucket.draws else None,
    )
