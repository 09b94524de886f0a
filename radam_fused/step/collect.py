"""What a step launches over one bucket: the plan, and the tensors, by the pointer path or through the dispatcher."""

from __future__ import annotations

from ..backends.ops import Operators
from ..cpp_helpers import gradients
from ..device import capturing
from ..state.bucket import Bucket
from ..state.bucket_manager import BucketManager
from ..state.membership import without_absent
from .launch import Launch, tensor_list_launch
from .merged_segments import merged_segments
from .plan import captured_plan, plan_for, whole_plan
from .pointer_table import can_bypass_dispatcher, find_pointer_table
from .scalars import check_capture


def collect_bucket(manager: BucketManager, bucket: Bucket, sure: bool = True, pointers: bool = True) -> Launch | None:
    """What a step launches over a bucket, or None where no parameter of it has a gradient.

    Args:
        manager: the bucket's.
        bucket: any.
        sure: look at every pair now. Otherwise a launch on the pointer path may be one that does not fit it, which the
            step finds out itself.
        pointers: whether the launch may take the pointer path.

    Raises:
        RuntimeError, TypeError, ValueError: a gradient or a parameter that does not fit, by name, or a CUDA graph that
            could not replay the step.
    """
    captured = bucket.may_capture and capturing(bucket.device)
    ops: Operators = manager.ops[bucket]
    if pointers and bucket.all_present and not (captured or manager.flatten):
        whole = whole_plan(bucket)
        table = None if whole is None else find_pointer_table(bucket, whole, ops)
        if whole is not None and table is not None and (not sure or table.fits()):
            tables = whole.segments, whole.scalar_index, whole.rng_offsets
            return Launch(bucket, whole, whole.params, None, *tables, table)
    plan_of = captured_plan if captured else plan_for
    if captured:
        if manager.offload:
            raise RuntimeError("offload = True: a CUDA graph cannot capture step(), which the host computes")
        check_capture([bucket], manager.groups)
    if not bucket.all_present and max(bucket.groups) < 0:
        return None
    if manager.flatten:
        flat = manager.flat_buffers[bucket]
        missing = flat.collect()
        plan = plan_of(bucket, missing if bucket.all_present else sorted({*missing, *bucket.absent}))
        if not plan.present:
            return None
        merged = plan.merged or merged_segments(bucket, flat, plan)
        by_pointers = pointers and ops.has_pointer_path and can_bypass_dispatcher()
        by_pointers = by_pointers and not (captured and ops.pointer_step is not None)
        return Launch(bucket, plan, *merged, (by_pointers and plan.pointer_table) or None)
    grads, missing = gradients(bucket.params)
    if not bucket.all_present:
        grads, missing = without_absent(bucket, grads, missing)
    if not grads:
        return None  # and the bucket keeps its plan for the next step
    return tensor_list_launch(bucket, plan_of(bucket, missing), grads, manager.names)
