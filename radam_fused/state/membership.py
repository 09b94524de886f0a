"""Which parameters an optimizer's groups hold, and whether the buckets that store their state still fit them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..dtensor import refuse_flatten
from ..numerics.tensor_checks import check_disjoint, check_gradients, group_names, may_step
from .bucket import Bucket
from .checkpoint import has_state
from .flat_buffers import check_not_shared


def members_of(groups: list[dict[str, Any]]) -> list[tuple[Tensor, int]]:
    """All parameters, each with the index of its group."""
    return [(p, index) for index, group in enumerate(groups) for p in group["params"]]


def stepping(waiting: list[tuple[Tensor, int]]) -> list[tuple[Tensor, int]]:
    """Of the parameters without a bucket those that have a gradient or may get one."""
    return [(p, index) for p, index in waiting if may_step(p)]


def names_of(groups: list[dict[str, Any]]) -> dict[Tensor, str]:
    """What errors call each parameter."""
    return {
        p: name
        for index, group in enumerate(groups)
        for p, name in zip(group["params"], group_names(group, index), strict=True)
    }


def is_current(bucket: Bucket, state: dict[Tensor, Any], indices: list[int]) -> bool:
    """Whether ``state`` still shows the bucket's buffers for all of its parameters, and none without state is gone.

    Args:
        bucket: any.
        state: the optimizer's.
        indices: of the parameters' groups; -1 where one is in none.
    """
    if not bucket.intact(thoroughly=True):
        return False
    for p, reference, index in zip(bucket.params, bucket.entries, indices, strict=True):
        entry = state.get(p)
        if reference is None:
            if index < 0 or has_state(entry):
                return False
        elif entry is None or reference() is not entry:
            return False
    return True


def is_unused(bucket: Bucket, indices: list[int]) -> bool:
    """Whether no group holds any of the bucket's parameters, and none of them has taken a step.

    DeepSpeed's ZeRO puts partitions into the groups after the optimizer was made. Under ``flatten`` the parameters
    that were there have state by then, and `torch.optim.Optimizer.state_dict` raises for state of a parameter in no
    group.
    """
    return all(index < 0 and not bucket.counts.begun(k) for k, index in enumerate(indices))


def check_flatten(names: dict[Tensor, str], new_params: list[Tensor]) -> None:
    """Raises for parameters that cannot become views of flat buffers, or whose gradients cannot."""
    for p in new_params:
        if p.is_complex():
            raise ValueError(f"flatten=True: {names[p]} is {p.dtype}: must be real, or flatten=False")
        check_not_shared(p, names[p])
    refuse_flatten(names)
    check_disjoint(list(names), list(names.values()))
    for p in new_params:
        if p.grad is not None:
            check_gradients([p], [p.grad], [names[p]])


def without_absent(bucket: Bucket, grads: list[Tensor], missing: list[int]) -> tuple[list[Tensor], list[int]]:
    """Gradients and missing segments of a step that leaves out parameters that are in no group now."""
    absent, without = set(bucket.absent), set(missing)
    present = [i for i in range(len(bucket.params)) if i not in without]
    grads = [grad for i, grad in zip(present, grads, strict=True) if i not in absent]
    return grads, sorted(absent | without)
