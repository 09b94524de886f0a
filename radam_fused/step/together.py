"""The steps of all buckets in one call of C, which allocates nothing once it has begun to write.

A step of several buckets must not end between two of them, and a plan's first step must not end before it is counted.
So whatever may fail is done for all buckets first: their scalars are computed, their tables and lists are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..backends.ops import OPERATORS, Operators
from ..cpp_helpers import step_together
from ..state.bucket_manager import BucketManager
from .collect import collect_bucket
from .host_scalars import Scalars
from .launch import Launch
from .plan import counting
from .pointer_table import HOLD_GIL_UP_TO, can_bypass_dispatcher
from .recovery import check_launch, repair_layout

_NATIVE = OPERATORS["cpu"].step
"""What ``step_together`` does the same as."""


def _suits(launch: Launch, ops: Operators) -> bool:
    """Whether the step of a launch is a function of C that runs on the host."""
    if ops.step is not _NATIVE or ops.backend != "cpu" or not ops.has_pointer_path:
        return False
    return launch.pointer_table is not None or (not launch.bucket.is_sharded and can_bypass_dispatcher())


def run_together(
    manager: BucketManager, launches: Sequence[Launch], scalars: Scalars, zero_grads: bool, repair: bool = True
) -> Sequence[Launch]:
    """Takes and counts the steps of all launches; returns those that have to be run one by one: all, or none.

    Args:
        manager: the buckets.
        launches: of `collect`.
        scalars: makes the scalars of each.
        zero_grads: whether to leave zeros in the gradients.
        repair: whether a failed call may be repaired; False once one has been.

    Raises:
        RuntimeError, TypeError, ValueError: a tensor that does not fit, by name; nothing was written.
        MemoryError: nothing was written either.
    """
    for one in launches:
        if not _suits(one, manager.ops[one.bucket]):
            return launches
    scalars.prepare([(one.bucket, one.plan, manager.ops[one.bucket]) for one in launches])
    try:
        steps = [_arguments(one, scalars) for one in launches]
        if step_together(steps, zero_grads):
            scalars.confirm()
            for one in launches:
                one.bucket.unconfirmed, one.plan.first = None, False
            return ()
    except BaseException as error:
        scalars.cancel()
        if not isinstance(error, Exception):
            raise
        for one in launches:
            check_launch(one, manager.names)  # a clearer error, where a tensor is at fault
        repaired = [repair_layout(one.bucket) for one in launches if repair]
        if not any(repaired):
            raise
    else:
        scalars.cancel()
        return launches
    collected = [collect_bucket(manager, one.bucket, pointers=False) for one in launches]
    return run_together(manager, [one for one in collected if one is not None], scalars, zero_grads, repair=False)


def _arguments(launch: Launch, scalars: Scalars) -> tuple[Any, ...]:
    """What ``step_together`` takes of a launch."""
    bucket, plan, params, grads, segments, scalar_index, rng_offsets, pointers = launch
    values = scalars.prepared(plan)
    if pointers is not None:
        return pointers.prepared(), values, counting(bucket, plan)
    tensors = bucket.exp_avg, bucket.exp_avg_sq, segments, scalar_index, bucket.scales, bucket.master, rng_offsets
    hold_gil = bucket.length <= HOLD_GIL_UP_TO
    return params, grads, tensors, bucket.stochastic, hold_gil, values, counting(bucket, plan)
