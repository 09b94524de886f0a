"""The plan of a step over one bucket: built once, and used again for as long as the same parameters get gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ..cpp_helpers import share_no_memory
from ..device import upload
from ..dtensor import local
from ..modes import real
from ..numerics.layout import layout_hash
from ..numerics.overlaps import Places, check_freed, sharing
from ..numerics.scalars import ScalarBuffer
from ..state.bucket import Bucket
from ..tensor_kinds import is_fake

if TYPE_CHECKING:
    from ..backends.triton.pointer_scalars import PointerScalars
    from .merged_segments import MergedSegments
    from .pointer_table import PointerTable


@dataclass
class Plan:
    """The tables of a step over one bucket, which depend on no value that a step changes."""

    missing: list[int]
    """Segments without a gradient. The step changes neither them nor their step counts."""
    present: list[int]
    """All other segments."""
    params: list[Tensor]
    """The parameters of the present segments."""
    segments: Tensor
    """int64 (n, 2), on the CPU: the start of each present segment in the flat buffers, and its `layout_hash`."""
    scalar_index: Tensor
    """int64, on the CPU: the index of the `StepScalars` of each present segment."""
    pairs: list[tuple[int, int]]
    """For each `StepScalars` its parameter group, and a representative segment: one of those that use it. All of them
    have taken the same number of steps."""
    scalar_buffer: ScalarBuffer
    """Where the host writes the scalars of a step."""
    counting: tuple[int, int, int, int] | None = None
    """See `counting`."""
    first: bool = True
    """Whether this plan has not been launched yet."""
    counts_known: bool = True
    """Whether the host knows which segments have the same count; a capture cannot wait for the device to find out."""
    tables: tuple[Tensor, Tensor] | None = None
    """What the scalars operator takes of this plan: see `device_tables`."""
    rng_offsets: Tensor | None = None
    """int64, on the CPU: where the random numbers of each present segment begin; None where none are used."""
    places: Places | None = None
    """Where the parameters are stored, as of the last check that none shares memory with another."""
    pointer_table: PointerTable | Literal[False] | None = None
    """See `radam_fused.step.pointer_table`; False where this plan cannot take that path, None until a step asks."""
    norm_table: PointerTable | Literal[False] | None = None
    """Under ``flatten``, the same for the norm: see `radam_fused.step.pointer_table.find_norm_table`."""
    pointer_scalars: PointerScalars | None = None
    """What computes the scalars of clipped steps without the dispatcher (`radam_fused.step.scalars`)."""
    merged: MergedSegments | None = None
    """Under ``flatten``, what a step launches instead of the segments: see `radam_fused.step.merged_segments`."""


def build_plan(bucket: Bucket, missing: list[int], apart: bool = False) -> Plan:
    """Makes the plan of a step in which these segments have no gradient.

    Args:
        bucket: any.
        missing: the segments.
        apart: give each present segment scalars of its own; otherwise segments of the same parameter group and the same
            step count share them.
    """
    absent = set(missing)
    present = [i for i in range(len(bucket.params)) if i not in absent]
    taken = range(len(bucket.params)) if apart else bucket.counts.classes(absent)
    index_of: dict[tuple[int, int], int] = {}
    scalar_index = [index_of.setdefault((bucket.groups[i], taken[i]), len(index_of)) for i in present]
    first_of: dict[int, int] = {}
    for i, index in zip(present, scalar_index, strict=True):
        first_of.setdefault(index, i)
    segments = [(bucket.starts[i], layout_hash(bucket.shapes[i], bucket.strides[i])) for i in present]
    with real():
        return _built(bucket, missing, present, scalar_index, list(first_of.values()), segments)


def _built(
    bucket: Bucket,
    missing: list[int],
    present: list[int],
    scalar_index: list[int],
    representatives: list[int],
    segments: list[tuple[int, int]],
) -> Plan:
    """The plan, in a context in which tensors are real: the host and C read its tables."""
    rng_offsets = torch.tensor([bucket.rng_offset(i) for i in present], dtype=torch.int64, device="cpu")
    return Plan(
        missing=missing,
        present=present,
        params=[bucket.params[i] for i in present],
        segments=torch.tensor(segments, dtype=torch.int64, device="cpu").reshape(-1, 2),
        scalar_index=torch.tensor(scalar_index, dtype=torch.int64, device="cpu"),
        pairs=[(bucket.groups[i], i) for i in representatives],
        scalar_buffer=ScalarBuffer(len(representatives)),
        rng_offsets=rng_offsets if bucket.uses_random_bits else None,
    )


def plan_for(bucket: Bucket, missing: list[int]) -> Plan:
    """The plan of a step in which these segments have no gradient: the last one, where nothing has changed.

    Raises:
        ValueError: user code has written a value into ``state[p]["step"]`` that is no step count.
    """
    if bucket.counts.written():
        bucket.counts.honour()
        bucket.last_plan = None
    if bucket.last_plan is None or bucket.last_plan.missing != missing:
        bucket.last_plan = build_plan(bucket, missing)
    plan: Plan = bucket.last_plan
    return plan


def captured_plan(bucket: Bucket, missing: list[int]) -> Plan:
    """The plan of a step that a CUDA graph captures: each segment has its own scalars, and the plan is not kept.

    User code may take other steps between two replays (device.py), so two segments with the same count now may have
    different counts in a replay. For the same reason the step-count classes of eager steps are split as the replays
    will split them.
    """
    plan = build_plan(bucket, missing, apart=True)
    plan.counts_known = bucket.counts.expect_replays(set(missing))
    if missing:
        bucket.last_plan = None
    return plan


def whole_plan(bucket: Bucket) -> Plan | None:
    """The last step's plan, if all segments were in it and no count was written since."""
    plan: Plan | None = bucket.last_plan
    return plan if plan and not plan.missing and not bucket.counts.written() else None


def device_tables(bucket: Bucket, plan: Plan) -> tuple[Tensor, Tensor]:
    """``pairs`` and ``counted`` of the scalars operator (`radam_fused.backends.ops`), on the device of the moments."""
    if plan.tables is None:
        with real():
            counted = torch.zeros(len(bucket.params), dtype=torch.float32, device="cpu")
            counted[plan.present] = 1.0
            device = torch.device("cpu") if bucket.is_fake else bucket.state_device
            both = torch.tensor(plan.pairs, dtype=torch.int64, device="cpu"), counted
            plan.tables = upload(both[0], device), upload(both[1], device)
    return plan.tables


def counting(bucket: Bucket, plan: Plan) -> tuple[int, int, int, int] | None:
    """Where the pointer path counts the step that it takes: addresses for C; None where a device counts the steps."""
    if bucket.counts.on_device:
        return None
    if plan.counting is None:
        plan.counting = (*bucket.counts.addresses, device_tables(bucket, plan)[1].data_ptr() if plan.missing else 0)
    return plan.counting


def check_params_disjoint(plan: Plan, names: Callable[[], dict[Tensor, str]]) -> None:
    """Raises if two parameters of a plan share memory by now; when their moments were laid out, they did not.

    Args:
        plan: what one launch steps.
        names: what errors call each parameter.

    Raises:
        RuntimeError: two parameters share memory. The message names both.
        ValueError: the storage of one was freed or shrunk, and other memory may have taken its addresses.
    """
    if plan.places is not None and plan.places.intact():
        return
    if any(is_fake(local(p)) for p in plan.params[:1]):
        return
    plan.places = None
    if not share_no_memory([local(p) for p in plan.params]):
        for later, earlier in sharing(plan.params):
            name = names()
            for p in (plan.params[later], plan.params[earlier]):
                check_freed(local(p), name[p])  # a freed parameter's addresses may be another tensor's
            raise RuntimeError(
                f"{name[plan.params[later]]} shares memory with {name[plan.params[earlier]]}, and did not when their "
                "moments were laid out: load_state_dict(state_dict()) lays them out again, to be stepped one after the "
                "other"
            )
    plan.places = Places(plan.params)
