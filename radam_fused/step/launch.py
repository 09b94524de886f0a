"""Builds and checks the arguments of one step operator call per bucket."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ..dtensor import local_gradients
from ..numerics.layout import as_real
from ..numerics.tensor_checks import check_gradients
from ..state.bucket import Bucket
from ..tensor_kinds import check_memory, may_wrap
from .plan import Plan, check_params_disjoint
from .pointer_table import PointerTable

Names = Callable[[], dict[Tensor, str]]
"""Gives what errors call each parameter."""


class Launch(NamedTuple):
    """The arguments of one call of the step operator, without its scalars."""

    bucket: Bucket
    plan: Plan
    params: list[Tensor]
    grads: list[Tensor] | None
    """None where the pointer table finds them."""
    segments: Tensor
    scalar_index: Tensor
    rng_offsets: Tensor | None = None
    """Where the random numbers of each segment begin; None where a step uses no random bits."""
    pointer_table: PointerTable | None = None


def resolved(param: Tensor, grad: Tensor) -> Tensor:
    """The parameter's gradient; a lazy conjugate, negative or zero is first replaced by a tensor with those values."""
    if grad.is_conj() or grad.is_neg() or grad._is_zerotensor():
        grad = grad.detach().clone().resolve_conj().resolve_neg()
        param.grad = grad
    return grad


def tensor_list_launch(bucket: Bucket, plan: Plan, grads: list[Tensor], names: Names) -> Launch:
    """The launch of a plan through the dispatcher, with the operator's lists of tensors.

    Raises:
        RuntimeError, TypeError, ValueError: a gradient of a DTensor or a complex parameter that does not fit, or a
            tensor subclass without memory.
    """
    params = plan.params
    check_params_disjoint(plan, names)
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
    return Launch(bucket, plan, params, grads, plan.segments, plan.scalar_index, plan.rng_offsets)
