"""A step as `torch.compile` sees it: the operators, one bucket after another, and nothing of what chooses them.

Dynamo runs an optimizer's ``_init_group`` eagerly while it traces, fills the lists it was given with what the call
left in them, and guards on parameters, gradients, state and hyperparameters. So the choice of what to launch is made
there, by the code of every step, and only `step` below is traced. The scalars are computed on the device:
neither another ``t`` nor another ``lr``, which stays a tensor, may compile the step again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..backends import backend_for
from ..backends.ops import OPERATORS
from ..cpp_helpers import gradients
from ..device import COMPILING, capturing, upload
from ..options import check_all
from ..state.bucket_manager import BucketManager
from ..state.transaction import Transaction
from .launch import Launch
from .norm_lines import by_kind, lines
from .plan import device_tables, plan_for
from .recovery import check_launch, repair_layout
from .scalars import DeviceTables

if TYPE_CHECKING:
    from ..optimizer import FusedRAdam

TENSORS = 9
"""Of each launch, beside parameters and gradients: see `choose`."""


def run(optimizer: FusedRAdam) -> None:
    """One step, as torch.compile traces it."""
    params: list[Tensor] = []
    grads: list[Tensor] = []
    tensors: list[Tensor] = []
    manager = optimizer._bucket_manager
    guards = (manager.name, manager.edited) if manager is not None else ()
    step(
        optimizer._init_group(guards, params, grads, tensors),
        optimizer.param_groups,
        params,
        grads,
        tensors,
        optimizer._max_grad_norm,
        optimizer._zero_grads,
        getattr(optimizer, "grad_scale", None),
        getattr(optimizer, "found_inf", None),
    )


def choose(
    manager: BucketManager,
    tables: DeviceTables,
    groups: list[dict[str, Any]],
    backend: str,
    grad_norm: Tensor | None,
    params: list[Tensor],
    grads: list[Tensor],
    tensors: list[Tensor],
) -> tuple[Any, ...]:
    """Fills the lists with what a step launches over each bucket.

    Returns (backend, count of parameters, which of ``scales``, ``master`` and ``rng_offsets`` follow its tensors,
    stochastic) of each launch; and of a step that clips (backend, places in ``grads``) for each line of the norm.

    ``grad_norm`` goes to the end of ``tensors``: where a step that clips leaves the norm.

    Raises:
        RuntimeError, TypeError, ValueError: a gradient, a parameter or a hyperparameter that does not fit.
        NotImplementedError: complex parameters, DTensors, or offloaded ones.
    """
    check_all(groups, False)
    for group in groups:
        for p in group["params"]:
            if capturing(p.device):  # what is made here stays for later calls, whose replays would not fill it
                raise RuntimeError(COMPILING)
    manager.add_new_params()
    manager.count_on_device()
    launches: list[Any] = []
    chosen: list[Launch] = []
    # Lines without a learning rate: `step` passes that as a tensor.
    constant = [{**group, "lr": 0.0} for group in groups]
    for bucket in manager.buckets:
        if bucket.is_complex:  # torch's functionalisation cannot mutate the real view of a complex tensor (2.13)
            raise NotImplementedError(
                "complex parameters under torch.compile: step them outside of the compiled function"
            )
        if manager.offload:  # dynamo would trace the ring of chunks, whose streams and order are its whole point
            raise NotImplementedError("offload=True under torch.compile: step outside of the compiled function")
        if bucket.is_sharded:  # the operators would meet DTensors in the graph, which know no rule for them
            raise NotImplementedError(
                "DTensor parameters under torch.compile: step them outside of the compiled function"
            )
        repair_layout(bucket)
        present, missing = gradients(bucket.params)
        plan = plan_for(bucket, missing)
        if not plan.present:
            continue
        chosen.append(Launch(bucket, plan, plan.params, present, plan.segments, plan.scalar_index))
        check_launch(chosen[-1], manager.names)
        if plan.first:
            with Transaction() as transaction:
                manager.publish_new(bucket, plan.present, transaction)
            bucket.unconfirmed, plan.first = None, False
        params += plan.params
        grads += present
        # Scalars for each segment: a compiled step does not check again which segments have the same step count.
        scalar_index = torch.arange(len(plan.present), dtype=torch.int64, device="cpu")
        own = [(bucket.groups[i], i) for i in plan.present]
        pairs = upload(torch.tensor(own, dtype=torch.int64, device="cpu"), bucket.device)
        _, counted = device_tables(bucket, plan)
        group_scalars = tables.group_scalars(constant, bucket.device)
        tables.keep(group_scalars, scalar_index, pairs, counted, plan.segments, plan.rng_offsets)
        tensors += (
            bucket.exp_avg,
            bucket.exp_avg_sq,
            plan.segments,
            scalar_index,
            group_scalars,
            pairs,
            counted,
            bucket.counts.shown,
        )
        tensors += (bucket.counts.taken,)
        forms = bucket.scales, bucket.master, plan.rng_offsets
        tensors += (tensor for tensor in forms if tensor is not None)
        there = tuple(tensor is not None for tensor in forms)
        launches.append((backend_for(bucket.device.type, backend), len(plan.present), there, bucket.stochastic))
    if not launches or grad_norm is None:
        return tuple(launches), ()
    tensors.append(grad_norm)
    place_of = {id(grad): place for place, grad in enumerate(grads)}
    norm = [
        (backend_for(together[0].bucket.device.type, backend), tuple(place_of[id(grad)] for grad in line))
        for together in by_kind(chosen)
        for line in lines(together, lambda *_: None)
    ]
    return tuple(launches), tuple(norm)


def step(
    chosen: tuple[Any, ...],
    groups: list[dict[str, Any]],
    params: list[Tensor],
    grads: list[Tensor],
    tensors: list[Tensor],
    max_grad_norm: float | None,
    zero_grads: bool,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """One step of what `choose` has found."""
    launches, norm_lines = chosen
    partial = [OPERATORS[name].grad_norm([grads[place] for place in places]) for name, places in norm_lines]
    squares = torch.cat([sums.to(partial[0].device) for sums in partial]) if partial else None
    for name, begin, end, index, there, stochastic in _launches(launches):
        exp_avg, exp_avg_sq, segments, scalar_index, group_scalars, pairs, counted, steps, taken = tensors[
            index : index + TENSORS
        ]
        device = exp_avg.device
        rates = [group["lr"] for group in groups]
        lr = torch.stack(
            [
                rate.detach().reshape(()).to(device, torch.float64)
                if isinstance(rate, Tensor)
                else torch.ones((), dtype=torch.float64, device=device) * rate
                for rate in rates
            ]
        )
        scalars, norm = OPERATORS[name].scalars(
            group_scalars,
            pairs,
            counted,
            steps,
            taken,
            lr,
            _on(squares, device),
            max_grad_norm or 0.0,
            _on(grad_scale, device),
            _on(found_inf, device),
        )
        scales, master, rng_offsets = _forms(tensors, index + TENSORS, there)
        OPERATORS[name].step(
            params[begin:end],
            grads[begin:end],
            exp_avg,
            exp_avg_sq,
            segments,
            scalar_index,
            scalars,
            zero_grads,
            scales,
            master,
            stochastic,
            rng_offsets,
        )
        if max_grad_norm is not None and begin == 0:
            tensors[-1].copy_(norm)
        if grad_scale is not None and not zero_grads:  # `radam_fused.step.grad_scaler.unscale`
            inverse = grad_scale.double().reciprocal().float().to(device)
            torch._foreach_mul_(grads[begin:end], inverse)


def _on(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)


def _forms(tensors: list[Tensor], at: int, there: tuple[bool, ...]) -> list[Tensor | None]:
    """``scales``, ``master`` and ``rng_offsets`` of a launch, those that are there."""
    found: list[Tensor | None] = []
    for is_there in there:
        found.append(tensors[at] if is_there else None)
        at += is_there
    return found


def _launches(launches: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """(backend, first parameter, past the last, first of its tensors, which forms, stochastic) of each launch."""
    result, begin, at = [], 0, 0
    for name, count, there, stochastic in launches:
        result.append((name, begin, begin + count, at, there, stochastic))
        begin += count
        at += TENSORS + sum(there)
    return result
