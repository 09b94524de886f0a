"""The contestants: one small adapter each.

All get the same starting parameters, copied, and the same gradients; all take lr = 1e-3, betas = (0.9, 0.999),
eps = 1e-8 and no weight decay. A contestant that cannot run on this machine raises `Absent` with the reason, which is
reported in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench import ceiling
from bench.cases import Case


class Absent(Exception):
    """Why a contestant cannot run here."""


@dataclass
class Runner:
    """A contestant set up for one case.

    Attributes:
        step: one step over the whole case.
        params: the parameters that it updates, in the order of the case's shapes; empty if there is nothing to compare.
    """

    step: Callable[[], object]
    params: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Contestant:
    """One row of the tables.

    Attributes:
        name: what ``--contestants`` calls it.
        label: what tables and plots call it.
        role: "ours", "peer" or "ceiling".
        build: makes it ready for a case, from its starting parameters and gradients (neither of which it may change).
        arrays: how many arrays of the size of the parameters it holds at its largest, temporaries included.
        radam: whether its parameters have to agree with torch.optim.RAdam's.
    """

    name: str
    label: str
    role: str
    build: Callable[[Case, list[Tensor], list[Tensor]], Runner]
    arrays: int
    radam: bool = False


def _optimizer(make: Callable[..., torch.optim.Optimizer], **options: object) -> Callable[..., Runner]:
    """Builds a torch.optim.Optimizer over its own copy of the parameters and the shared gradients."""

    def build(case: Case, start: list[Tensor], grads: list[Tensor]) -> Runner:
        params = [value.clone().requires_grad_() for value in start]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer = make(params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, **options)
        return Runner(optimizer.step, params)

    return build


def _fused(flatten: bool) -> Callable[..., Runner]:
    def build(case: Case, start: list[Tensor], grads: list[Tensor]) -> Runner:
        try:
            from radam_fused import FusedRAdam, available_backends
        except ImportError as error:
            raise Absent(f"radam_fused does not import: {error}") from error
        missing = available_backends().get("cpu")
        if missing is not None:
            raise Absent(missing)
        # flatten=True copies the gradients into a buffer of its own; the others go on sharing theirs.
        return _optimizer(FusedRAdam, backend="cpu", flatten=flatten)(case, start, grads)

    return build


def _ceiling(case: Case, start: list[Tensor], grads: list[Tensor]) -> Runner:
    if case.flat_ceiling:
        p, g = ([torch.cat([value.flatten() for value in values])] for values in (start, grads))
    else:
        p, g = [value.clone() for value in start], grads
    m, v = ([torch.zeros_like(value) for value in p] for _ in range(2))
    try:
        add = ceiling.prepare(p, g, m, v, torch.get_num_threads())
    except (RuntimeError, OSError) as error:
        raise Absent(str(error)) from error
    arrays = (p, g, m, v)  # the call holds addresses only; the default argument keeps what lies there

    def step(_arrays: object = arrays) -> None:
        add()

    return Runner(step)


_RADAM, _ADAMW = torch.optim.RAdam, torch.optim.AdamW
CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant("ceiling", "ceiling (adds only)", "ceiling", _ceiling, arrays=4),
        Contestant("fused-flat", "FusedRAdam, flatten", "ours", _fused(flatten=True), arrays=4, radam=True),
        Contestant("fused", "FusedRAdam", "ours", _fused(flatten=False), arrays=3, radam=True),
        Contestant("adamw-fused", "torch AdamW, fused", "peer", _optimizer(_ADAMW, fused=True), arrays=3),
        Contestant("radam-foreach", "torch RAdam, foreach", "peer", _optimizer(_RADAM, foreach=True), 6, radam=True),
        Contestant("radam-single", "torch RAdam, single", "peer", _optimizer(_RADAM, foreach=False), 4, radam=True),
    )
}
REFERENCES = ("radam-single", "radam-foreach")
"""What the parameters of RAdam contestants are held against: the first of these that takes part."""
