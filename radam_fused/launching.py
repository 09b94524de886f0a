"""One step over the buckets: who makes its rows, and the calls of the operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .launches import Launch, check_launch
from .ops import NATIVE_DTYPE
from .placement import Placement
from .reports import span
from .scalars import DeviceScalars, DeviceTables, HostScalars, Scalars, capturing, on_device


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

    ``squares`` is what `radam_fused.launches.squares` has found for ``max_grad_norm``, over all ranks.

    Raises:
        RuntimeError: a CUDA graph is captured whose replays would repeat the host's numbers.
    """
    if (
        max_grad_norm is None
        and grad_scale is None
        and found_inf is None
        and not any(bucket.counted_on_device for bucket in placement.buckets)
        and not any(group["capturable"] or on_device(group["lr"]) for group in groups)
    ):
        if any(capturing(bucket.device) for bucket in placement.buckets):
            raise RuntimeError("capturable = False: a CUDA graph that captures step() needs True, to replay it right")
        return HostScalars(groups)
    placement.count_on_device()
    return DeviceScalars(groups, tables, squares, max_grad_norm or 0.0, grad_scale, found_inf)


def run(placement: Placement, launch: Launch, scalars: Scalars, zero_grads: bool) -> None:
    """One bucket's step: its rows, the step operator, and the counts.

    Raises:
        RuntimeError, TypeError, ValueError: a tensor that does not fit, by name; nothing was written.
    """
    bucket, plan, params, grads, segments, row_of, origins, described = launch
    ops = placement.ops[bucket]
    # Gradients are off, and the operators have no formula: autograd need not look at every tensor of the lists.
    with torch._C._AutoDispatchBelowAutograd():
        with span("rows"):
            rows = scalars.rows(bucket, plan, ops)
        try:
            moments = bucket.exp_avg, bucket.exp_avg_sq
            forms = bucket.scales, bucket.residue, bucket.stochastic, origins
            with span("step"):
                if described is not None and ops.described is not None:
                    dtype = NATIVE_DTYPE[bucket.dtype]
                    ops.described.step(described, dtype, *moments, segments, row_of, rows, zero_grads, *forms)
                else:
                    ops.step(params, grads, *moments, segments, row_of, rows, zero_grads, *forms)
        except Exception:
            scalars.undo(bucket, plan)
            check_launch(launch, placement.names)  # a clearer error, where a tensor is at fault
            again = placement.collect(bucket) if placement.amend(bucket) else None
            if again is None:
                raise
            run(placement, again, scalars, zero_grads)
            return
    torch.autograd.graph.increment_version([*params, *grads] if zero_grads else params)
    if bucket.is_sharded:  # autograd knows the wrappers, not what they wrap
        torch.autograd.graph.increment_version(plan.params)
    placement.stepped(launch)
