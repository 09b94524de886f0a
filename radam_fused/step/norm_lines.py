"""Which gradients the norm adds up in one line of partial sums, and in which order: that of ``param_groups``.

The order of additions decides the norm's last bits. So it must not depend on how parameters came to their buckets:
those that were frozen at first have one of their own, and none once the run was resumed from a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import compress
from operator import attrgetter

import torch
from torch import Tensor

from ..cpp_helpers import gradients
from ..numerics.tensor_checks import gradient_dtypes
from .launch import Launch

_dtype_of = attrgetter("dtype")


def by_kind(launches: Sequence[Launch]) -> Sequence[Sequence[Launch]]:
    """The launches, with those together whose parameters would share a bucket had they come to one together."""
    kinds: dict[Hashable, list[Launch]] = {}
    for launch in launches:
        kinds.setdefault(launch.bucket.kind, []).append(launch)
    return list(kinds.values())


def lines(
    launches: Sequence[Launch], counts: Callable[[Launch, list[Tensor]], list[bool] | None]
) -> Iterator[list[Tensor]]:
    """The gradients of launches of one kind, in the order of their parameters: a list for each dtype.

    Under ``flatten`` every gradient by itself, too, though the launches take neighbours in the buffers as one.

    Args:
        launches: of one kind.
        counts: given a launch and its gradients, which of them to take; None for all.
    """
    found: list[Tensor] = []
    places: list[int] = []
    for launch in launches:
        bucket, plan = launch.bucket, launch.plan
        grads = launch.grads
        if grads is None or plan.merged is not None:
            grads = gradients(plan.params)[0]
        taken = counts(launch, grads)
        found += grads if taken is None else compress(grads, taken)
        if len(launches) > 1 or not bucket.in_order:
            own = (bucket.places[segment] for segment in plan.present)
            places += own if taken is None else compress(own, taken)
    if places:
        found = [found[k] for k in sorted(range(len(places)), key=places.__getitem__)]
    yield from by_dtype(found, launches[0].bucket.dtype)


def by_dtype(grads: list[Tensor], param_dtype: torch.dtype) -> Iterable[list[Tensor]]:
    """Gradients of parameters of one dtype in lists of one dtype each, in the order of `gradient_dtypes`.

    Most often there is one, and then no loop over them in Python.
    """
    dtypes = set(map(_dtype_of, grads))
    if len(dtypes) <= 1:
        return [grads] if grads else []
    allowed = gradient_dtypes(param_dtype)
    order = sorted(dtypes, key=lambda dtype: allowed.index(dtype) if dtype in allowed else len(allowed))
    return [[grad for grad in grads if grad.dtype == dtype] for dtype in order]
