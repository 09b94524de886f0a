"""The ``reference`` backend's step: plain torch operations, one per line of the numeric contract.

All tests compare the other backends with it bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...numerics.layout import moment_strides
from ...numerics.scalars import StepScalars
from ...numerics.state_format import StateBuffers
from ...numerics.tensor_checks import storage_view
from ..operator_args import StepArgs
from ..operator_checks import check_step
from .low_precision import LowPrecisionParam
from .update import update_by_device, update_by_host


def step(args: StepArgs) -> None:
    """``radam_fused::step_reference``; arguments and errors as `radam_fused.backends.ops` says."""
    check_step(args)
    exp_avg, scalars, state = args.exp_avg, args.scalars, args.state
    full_precision = state.in_full_precision(args.rounds_stochastically)
    zeroed = [storage_view(grad) for grad in args.grads] if args.zero_grads else []
    on_host = scalars.device.type == "cpu"  # reading scalars on a device would wait for it
    rounded = scalars.to(
        exp_avg.dtype if full_precision else torch.float32
    )  # once: the rounded numbers decide every branch
    table = rounded.tolist() if on_host else rounded.unbind(0)
    update = update_by_host if on_host else update_by_device
    places = zip(args.starts(), args.offsets(), args.scalar_index.tolist(), strict=True)
    # Everything that needs memory comes before the first write: without memory nothing is stepped.
    new = StateBuffers(*(None if buffer is None else buffer.clone() for buffer in state))  # type: ignore[arg-type]
    results: list[tuple[Tensor | None, Tensor | None]] = list(zip(state, new, strict=True))
    for param, grad, (start, rng_offset, index) in zip(args.params, args.grads, places, strict=True):
        p, g = param.detach(), grad.detach()
        strides = moment_strides(param)
        result = torch.empty_strided(p.shape, strides, dtype=p.dtype, device=p.device).copy_(p)
        results.append((p, result))
        if not full_precision:
            row = scalars[index].to(exp_avg.device)
            LowPrecisionParam(p, g, new, start, rng_offset, row, args.stochastic).update(result)
            continue
        m, v = (moments.as_strided(param.shape, strides, start) for moments in new[:2])
        update(result, g, m, v, StepScalars(*table[index]))
    for target, values in results:
        if target is not None and values is not None:
            target.copy_(values)
    for grad in zeroed:
        grad.zero_()
