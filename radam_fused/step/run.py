"""The first and the last of the four calls of a step: what it launches over each bucket, and the launches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends.ops import Operators
from ..cpp_helpers import HAS_LOOPS, count_step
from ..modes import writing
from ..state.bucket_manager import BucketManager
from .collect import collect_bucket
from .first_steps import FirstSteps
from .grad_scaler import Unscaling
from .host_scalars import HostScalars, Scalars
from .interrupts import Deferred
from .launch import Launch
from .plan import counting
from .pointer_table import can_bypass_dispatcher
from .profiling import profiled
from .recovery import check_launch, repair_layout
from .together import run_together


def collect(manager: BucketManager, sure: bool) -> list[Launch]:
    """What a step launches, at most one for each bucket; parameters with their first gradient get a bucket before.

    Args:
        manager: the buckets.
        sure: check every gradient now. Otherwise a single launch checks its own tensors before it writes; of several,
            all have to be right before the first one does.

    Raises:
        RuntimeError, TypeError, ValueError: a gradient or a parameter that does not fit, by name.
    """
    manager.add_new_params()
    sure = sure or len(manager.buckets) > 1
    launches = profiled("collect", _collect_all)(manager, sure)
    if len(launches) > 1:
        for launch in launches:
            check_launch(launch, manager.names)
    return launches


def _collect_all(manager: BucketManager, sure: bool) -> list[Launch]:
    launches = []
    for bucket in manager.buckets:  # in Python 3.11 a comprehension would be a call of its own
        found = collect_bucket(manager, bucket, sure)
        if found is not None:
            launches.append(found)
    return launches


def launch(
    manager: BucketManager,
    launches: Sequence[Launch],
    scalars: Scalars,
    zero_grads: bool,
    grad_scale: Tensor | None,
) -> None:
    """Takes the step of every launch, and counts it; a signal's handler runs before all of that or after.

    Args:
        manager: the buckets.
        launches: of `collect`, at least one.
        scalars: makes the scalars of each.
        zero_grads: whether to leave zeros in the gradients.
        grad_scale: by what the gradients are divided after the step; None leaves them.

    Raises:
        RuntimeError, TypeError, ValueError: see `run`.
    """
    first = launches[0]
    # One call of C reads, moves and counts. Of anything more an interrupt could see a part.
    alone = len(launches) == 1 and first.pointer_table is not None and not first.plan.first
    if alone and type(scalars) is HostScalars and manager.ops[first.bucket].pointer_step is None:
        run(manager, first, scalars, zero_grads)
        return
    unscaling = None if grad_scale is None else Unscaling(launches, grad_scale)
    with Deferred():
        if alone:
            run(manager, first, scalars, zero_grads)
        else:
            _run_all(manager, launches, scalars, zero_grads)
        if unscaling is not None:
            unscaling.run()


def _run_all(manager: BucketManager, launches: Sequence[Launch], scalars: Scalars, zero_grads: bool) -> None:
    """The steps of several launches, or of one that is a plan's first or takes lists: of all, or of none."""
    first_steps = FirstSteps(manager)
    try:
        for one in launches:
            if one.plan.first:
                first_steps.show(one)
        left = run_together(manager, launches, scalars, zero_grads)
        if left:
            _run_one_by_one(manager, left, scalars, zero_grads)
    except BaseException:
        first_steps.take_back()
        raise


def _run_one_by_one(manager: BucketManager, launches: Sequence[Launch], scalars: Scalars, zero_grads: bool) -> None:
    """The steps of launches of which one is no function of C on the host: an operator may fail between two of them."""
    if len(launches) > 1:
        scalars.prepare([(one.bucket, one.plan, manager.ops[one.bucket]) for one in launches])
    try:
        for one in launches:
            run(manager, one, scalars, zero_grads)
    except BaseException:
        scalars.cancel()
        raise


def run_alone(manager: BucketManager, launch: Launch, scalars: Scalars) -> None:
    """The step of one bucket, in a hook of the backward pass; see `run`."""
    first_steps = FirstSteps(manager)
    try:
        if launch.plan.first:
            first_steps.show(launch)
        run(manager, launch, scalars, zero_grads=False)
    except BaseException:
        first_steps.take_back()
        raise


def run(manager: BucketManager, launch: Launch, scalars: Scalars, zero_grads: bool, repair: bool = True) -> None:
    """One bucket's step: its scalars, the step operator, and the counts.

    Where the pointer path does not fit, the step goes through the dispatcher; where the operator then fails for a
    reason that can be repaired, it is tried once more.

    Args:
        manager: the buckets.
        launch: of `collect`.
        scalars: makes the scalars.
        zero_grads: whether to leave zeros in the gradients.
        repair: whether a failed call may be repaired; False once one has been.

    Raises:
        RuntimeError, TypeError, ValueError: a tensor that does not fit, by name; nothing was written.
    """
    bucket, plan, pointers = launch.bucket, launch.plan, launch.pointer_table
    ops = manager.ops[bucket]
    values = profiled("scalars", scalars.compute)(bucket, plan, ops)
    counts = counting(bucket, plan)  # which may allocate: before anything is written
    try:
        if pointers is not None:
            stepped = profiled("step", pointers.step)(values, zero_grads, counts, ops.pointer_step)
        else:
            stepped = profiled("step", _step_lists)(launch, ops, values, zero_grads)
    except BaseException as error:
        scalars.undo(bucket, plan)
        if not isinstance(error, Exception):
            raise
        check_launch(launch, manager.names)  # a clearer error, where a tensor is at fault
        if not (repair and repair_layout(bucket)):
            raise
    else:
        if stepped:
            _finish(launch, counts)
            return
        scalars.undo(bucket, plan)
    again = collect_bucket(manager, bucket, pointers=False)
    if again is not None:
        run(manager, again, scalars, zero_grads, repair=pointers is not None)


def _step_lists(launch: Launch, ops: Operators, values: Tensor, zero_grads: bool) -> bool:
    """The step operator on lists of tensors, and the version counters of what it writes; True."""
    bucket, plan, params, grads, segments, scalar_index, rng_offsets, _ = launch
    assert grads is not None
    moments = bucket.exp_avg, bucket.exp_avg_sq
    low_precision = bucket.scales, bucket.master, bucket.stochastic, rng_offsets
    written = [*params, *grads] if zero_grads else params if bucket.is_inference else ()
    # Before the step, as this allocates. A counter that was raised for nothing does no harm.
    torch.autograd.graph.increment_version([*params, *grads] if zero_grads else params)
    if bucket.is_sharded:  # autograd knows the wrappers, not what they wrap
        torch.autograd.graph.increment_version(plan.params)
    # Gradients are off, and the operators have no formula: autograd need not look at every tensor of the lists.
    with writing(written), torch._C._AutoDispatchBelowAutograd():
        ops.step(params, grads, *moments, segments, scalar_index, values, zero_grads, *low_precision)
    return True


def _finish(launch: Launch, counts: tuple[int, int, int, int] | None) -> None:
    """Counts the step of a launch; on the pointer path the call that made it has done so.

    Args:
        launch: its step was taken.
        counts: what `counting` returned for it.
    """
    bucket, plan = launch.bucket, launch.plan
    if counts is not None and launch.pointer_table is None and HAS_LOOPS and can_bypass_dispatcher():
        count_step(counts)  # unlike the operations of torch it allocates nothing
    elif launch.pointer_table is None or bucket.counts.on_device:
        bucket.counts.add(plan.present if plan.missing else None, plan.counts_known)
    bucket.unconfirmed, plan.first = None, False
