"""What a step launches over a bucket: its tensors, in one of two ways, and what is asked of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from ..backends.ops import Operators
from ..cpp_helpers import gradients
from ..dtensor import local_gradients
from ..numerics.layout import as_real
from ..numerics.overlaps import check_apart
from ..numerics.tensor_checks import check_gradients, check_stored, gradient_dtypes
from ..state.bucket import Bucket
from ..tensor_kinds import check_memory, is_copy_on_write, may_wrap
from .grad_norm import GlobalNorm
from .plan import Plan
from .pointer_table import Addresses

_dtype_of = attrgetter("dtype")

Names = Callable[[], dict[Tensor, str]]
"""Gives what errors call each parameter."""


class Launch(NamedTuple):
    """The arguments of one call of an operator, but for its rows."""

    bucket: Bucket
    plan: Plan
    params: list[Tensor]
    grads: list[Tensor] | None
    """None where they are found by `addresses`."""
    segments: Tensor
    row_of: Tensor
    origins: Tensor | None = None
    """Where the random numbers of each segment begin; None where none are drawn."""
    addresses: Addresses | None = None


def resolved(param: Tensor, grad: Tensor) -> Tensor:
    """The parameter's gradient, from now on a tensor that lies in memory as it is: not a lazy conjugate, minus or 0."""
    if grad.is_conj() or grad.is_neg() or grad._is_zerotensor():
        grad = grad.detach().clone().resolve_conj().resolve_neg()
        param.grad = grad
    return grad


def materialized(tensor: Tensor) -> bool:
    """Gives a copy-on-write tensor (`torch._lazy_clone`) memory of its own; whether it was one.

    torch does so at the first write, but not on several threads.
    """
    if not is_copy_on_write(tensor):
        return False
    tensor.data_ptr()
    return True


def by_lists(bucket: Bucket, plan: Plan, grads: list[Tensor], names: Names) -> Launch:
    """The launch of a plan, whose parameters have these gradients.

    Raises:
        RuntimeError, TypeError, ValueError: a gradient of a DTensor or a complex parameter that does not fit, or a
            tensor subclass without memory.
    """
    params = plan.params
    check_apart(plan, names)
    if bucket.is_sharded:
        grads = local_gradients(params, grads, names)
        params = [p._local_tensor for p in params]  # type: ignore[attr-defined]
    if may_wrap(params) or may_wrap(grads):
        for p, tensor, grad in zip(plan.params, params, grads, strict=True):
            check_memory(tensor, names()[p])
            check_memory(grad, f"gradient of {names()[p]}")
    if bucket.is_complex:
        check_gradients(params, grads, [names()[p] for p in plan.params])
        grads = [resolved(p, grad) for p, grad in zip(params, grads, strict=True)]
        params, grads = list(map(as_real, params)), list(map(as_real, grads))
    return Launch(bucket, plan, params, grads, plan.segments, plan.row_of, plan.origins)


def check_launch(launch: Launch, names_of: Names) -> None:
    """Raises for the first tensor of a launch that does not fit, by name.

    Raises:
        RuntimeError, TypeError, ValueError: see `numerics.tensor_checks`; also a parameter that has another shape,
            device or precision than when its state was made.
    """
    if launch.addresses is not None and launch.addresses.plain():
        return
    bucket = launch.bucket
    names = names_of()
    grouped = [(k, p) for k, p in enumerate(bucket.params) if bucket.groups[k] >= 0]
    for segment, p in grouped:
        tensor = as_real(p)
        shape, is_double = tensor.shape, tensor.dtype == torch.float64
        was = f"its state was made for {tuple(bucket.shapes[segment])}, {bucket.dtype} on {bucket.device}"
        if shape != bucket.shapes[segment] or tensor.device != bucket.device:
            raise ValueError(f"{names[p]} is now {tuple(shape)} on {tensor.device}: {was}")
        if bucket.residue is not None and p.dtype != bucket.dtype:
            raise TypeError(f"{names[p]} is now {p.dtype}: its master weights were made for {bucket.dtype}")
        if is_double != (bucket.dtype == torch.float64) or p.is_complex() != bucket.is_complex:
            raise TypeError(f"{names[p]} is now {p.dtype}: {was}")
    pairs = [(p, p.grad) for _, p in grouped if p.grad is not None]
    for p, _ in pairs:
        first = pairs[0][0]
        if p.dtype != first.dtype:
            raise TypeError(
                f"{names[p]} is now {p.dtype} and {names[first]} {first.dtype}: their state lies "
                "together; after a change of some dtypes, load_state_dict(state_dict()) to lay it out anew"
            )
    check_gradients([p for p, _ in pairs], [grad for _, grad in pairs], [names[p] for p, _ in pairs])
    for p, grad in pairs:
        for name, tensor in ((names[p], p), (f"gradient of {names[p]}", grad)):
            # Wrappers have no memory of their own, and a lazy zero is written out before it is read (`resolved`).
            if type(tensor) in (Tensor, torch.nn.Parameter) and not tensor._is_zerotensor():
                check_stored(**{name: tensor})
    if bucket.is_sharded:
        local_gradients([p for p, _ in pairs], [grad for _, grad in pairs], names_of)


def squares(
    launches: Sequence[Launch], ops: Mapping[Bucket, Operators], names: Names, norm: GlobalNorm | None = None
) -> Tensor | None:
    """float64 (k, 1024), on the device of the first launch: the squares of all gradients (`radam_fused.backends.ops`).

    With ``norm`` only those that this rank counts, and None where it counts none; also checks the dtypes of all.
    """
    partial: list[Tensor] = []
    for launch in launches:
        ours = ops[launch.bucket]
        grads = gradients(launch.params)[0] if launch.grads is None else launch.grads
        if norm is not None:
            if not {grad.dtype for grad in grads} <= set(gradient_dtypes(launch.bucket.dtype)):
                check_launch(launch, names)  # which names it: after the all-reduce it would be too late for the others
            grads = norm.counted(launch.bucket, launch.plan, grads)
        dtypes = dict.fromkeys(map(_dtype_of, grads))  # one, most often: no loop over gradients in Python
        by_dtype = [grads] if len(dtypes) == 1 else [[g for g in grads if g.dtype == dtype] for dtype in dtypes]
        try:
            partial += map(ours.grad_norm, by_dtype)
        except Exception:
            check_launch(launch, names)  # a clearer error, where a tensor is at fault
            raise
    if len(partial) <= 1:
        return partial[0].unsqueeze(0) if partial else None
    device = partial[0].device
    return torch.stack([sums.to(device, non_blocking=device.type != "cpu") for sums in partial])
