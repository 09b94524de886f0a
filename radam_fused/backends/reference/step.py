"""The ``reference`` backend: plain torch operations, one a line of the numeric contract. The oracle of all tests."""

from __future__ import annotations

import torch
from torch import Tensor

from ...numerics.layout import moment_strides
from ...numerics.scalars import StepScalars
from ...numerics.tensor_checks import storage_view
from ..operator_checks import check_step
from .low_precision import Stored
from .update import update_by_device, update_by_host


def step(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    segments: Tensor,
    scalar_index: Tensor,
    scalars: Tensor,
    zero_grads: bool = False,
    scales: Tensor | None = None,
    master: Tensor | None = None,
    stochastic: bool = False,
    rng_offsets: Tensor | None = None,
) -> None:
    """``radam_fused::step_reference``; arguments and errors as `radam_fused.backends.ops` says."""
    state, tables = (exp_avg, exp_avg_sq, scales, master), (segments, scalar_index, scalars, rng_offsets)
    plain = check_step(params, grads, state, tables, stochastic)
    zeroed = [storage_view(grad.detach()) for grad in grads] if zero_grads else []
    on_host = scalars.device.type == "cpu"  # elsewhere, to look at a row would be to wait for the device
    rounded = scalars.to(exp_avg.dtype if plain else torch.float32)  # once: the rounded numbers decide every branch
    table = rounded.tolist() if on_host else rounded.unbind(0)
    update = update_by_host if on_host else update_by_device
    offsets = segments[:, 0] if rng_offsets is None else rng_offsets
    places = zip(segments[:, 0].tolist(), offsets.tolist(), scalar_index.tolist(), strict=True)
    # Everything that needs memory comes before the first write: without memory nothing is stepped.
    new_m, new_v = exp_avg.clone(), exp_avg_sq.clone()
    new = new_m, new_v, None if scales is None else scales.clone(), None if master is None else master.clone()
    results: list[tuple[Tensor | None, Tensor | None]] = list(zip(state, new, strict=True))
    for param, grad, (start, origin, index) in zip(params, grads, places, strict=True):
        p, g = param.detach(), grad.detach()
        strides = moment_strides(param)
        result = torch.empty_strided(p.shape, strides, dtype=p.dtype, device=p.device).copy_(p)
        results.append((p, result))
        if not plain:
            row = scalars[index].to(exp_avg.device)
            Stored(p, g, new, start, origin, row, stochastic).update(result)
            continue
        m, v = (moments.as_strided(param.shape, strides, start) for moments in (new_m, new_v))
        update(result, g, m, v, StepScalars(*table[index]))
    for target, values in results:
        if target is not None and values is not None:
            target.copy_(values)
    for grad in zeroed:
        grad.zero_()
