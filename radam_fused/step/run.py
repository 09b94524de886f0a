"""One step over the buckets: who makes its rows, and the calls of the operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends.ops import Operators
from ..modes import writing
from ..options import check_all
from ..state.bucket_manager import Placement
from .launch import Launch, check_launch
from .profiling import span
from .scalars import DeviceScalars, DeviceTables, HostScalars, Scalars, check_capture, on_device


def choose_scalars(
    placement: Placement,
    groups: list[dict[str, Any]],
    tables: DeviceTables,
    max_grad_norm: float | None,
    squares: Tensor | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> Scalars:
    """The host makes the rows of a step, unless one of the numbers is known to the device alone.

    ``squares`` is what `radam_fused.step.launch.squares` has found for ``max_grad_norm``, over all ranks.

    Raises:
        ValueError: a group that lacks a hyperparameter.
    """
    known = max_grad_norm is None and grad_scale is None and found_inf is None
    for bucket in placement.buckets:
        known = known and not bucket.counts.on_device
    try:
        for group in groups:
            known = known and not (group["capturable"] or on_device(group["lr"]))
    except KeyError:
        check_all(groups, False)  # says which group has none
        raise
    if known:
        return HostScalars(groups)
    if not all(bucket.counts.on_device for bucket in placement.buckets):
        check_capture(placement.buckets, groups)
        placement.count_on_device()
    return DeviceScalars(groups, tables, squares, max_grad_norm or 0.0, grad_scale, found_inf)


def run(placement: Placement, launch: Launch, scalars: Scalars, zero_grads: bool) -> None:
    """One bucket's step: its rows, the step operator, and the counts.

    Where the pointer path does not fit, the step goes through the dispatcher; where the operator then fails for a
    reason that can be repaired, it is tried once more.

    Raises:
        RuntimeError, TypeError, ValueError: a tensor that does not fit, by name; nothing was written.
    """
    attempt: Launch | None = launch
    for repair in (True, False) if launch.addresses is None else (True, True, False):
        if attempt is None or _attempt(placement, attempt, scalars, zero_grads, repair):
            return
        attempt = placement.collect(launch.bucket, pointers=False)


def _attempt(placement: Placement, launch: Launch, scalars: Scalars, zero_grads: bool, repair: bool) -> bool:
    """Whether the step was taken; False where it may be taken through the dispatcher, with nothing done yet."""
    bucket, plan = launch.bucket, launch.plan
    ops = placement.ops[bucket]
    with span("rows"):
        rows = scalars.rows(bucket, plan, ops)
    try:
        with span("step"):
            stepped = _call(launch, ops, rows, zero_grads)
    except BaseException as error:
        scalars.undo(bucket, plan)
        if isinstance(error, Exception):
            check_launch(launch, placement.names)  # a clearer error, where a tensor is at fault
            if repair and placement.amend(bucket):
                return False
        raise
    if stepped:
        placement.stepped(launch)
    else:
        scalars.undo(bucket, plan)
    return stepped


def _call(launch: Launch, ops: Operators, rows: Tensor, zero_grads: bool) -> bool:
    """The step operator, and the version counters of what it writes; False where it takes lists, nothing done."""
    bucket, plan, params, grads, segments, row_of, origins, addresses = launch
    if addresses is not None:
        return addresses.step(rows, zero_grads, bucket.counting(plan))
    assert grads is not None
    moments = bucket.exp_avg, bucket.exp_avg_sq
    forms = bucket.scales, bucket.residue, bucket.stochastic, origins
    written = [*params, *grads] if zero_grads else params if bucket.is_inference else ()
    # Gradients are off, and the operators have no formula: autograd need not look at every tensor of the lists.
    with writing(written), torch._C._AutoDispatchBelowAutograd():
        ops.step(params, grads, *moments, segments, row_of, rows, zero_grads, *forms)
    torch.autograd.graph.increment_version([*params, *grads] if zero_grads else params)
    if bucket.is_sharded:  # autograd knows the wrappers, not what they wrap
        torch.autograd.graph.increment_version(plan.params)
    return True
