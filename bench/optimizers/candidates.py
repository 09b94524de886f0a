"""Who takes part on the CPU: FusedRAdam in two forms, the ceiling, and the peers (`bench.optimizers.baselines`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.optimizers import bandwidth_ceiling
from bench.optimizers.baselines import HYPERPARAMETERS, PEERS, Absent, Peer, reason
from bench.optimizers.time_limit import TimeUp, time_limit
from bench.workloads.cases import BYTES_PER_ELEMENT, Case

FIRST_STEPS = 7
"""Taken before anything is timed: RAdam is rectified from step 6 on, and what is compiled lazily has been compiled."""


@dataclass
class Runner:
    """A contestant set up for one case.

    Attributes:
        step: one step over the whole case.
        params: the parameters that it updates, in the order of the case's shapes; empty if there is nothing to compare.
        steps: how many it has taken.
    """

    step: Callable[[], object]
    params: list[Tensor] = field(default_factory=list)
    steps: int = 0


@dataclass(frozen=True)
class Contestant:
    """One row of the tables.

    Attributes:
        name: what files and ``--peers`` call it.
        label: what tables and plots call it.
        role: "ours", "peer" or "ceiling".
        build: makes it ready for a case, from its starting parameters and gradients (neither of which it may change).
        arrays: how many arrays of the size of the parameters it holds at its largest, temporaries included.
        radam: whether its parameters have to agree with torch.optim.RAdam's.
        kind: what it computes, "" for nothing of use.
        bytes_per_element: the least that a step of its own moves: 28 in fp32, fewer with 8-bit moments.
    """

    name: str
    label: str
    role: str
    build: Callable[[Case, list[Tensor], list[Tensor]], Runner]
    arrays: int
    radam: bool = False
    kind: str = ""
    bytes_per_element: int = BYTES_PER_ELEMENT


def _parameters(start: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    """A copy of the parameters, with the shared gradients."""
    params = [value.clone().requires_grad_() for value in start]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    return params


def _peer(peer: Peer, case: Case, start: list[Tensor], grads: list[Tensor]) -> Runner:
    """A peer that has taken its first steps, so that whatever it compiles then is compiled."""
    peer.check(case.tensors, "cpu")
    params = _parameters(start, [grad.clone() for grad in grads] if peer.writes_grads else grads)
    try:
        with time_limit((peer.setup or {}).get("cpu")):
            optimizer = peer.make(case.grouped(params))
            step = peer.step(optimizer)
            for _ in range(FIRST_STEPS - peer.compiled):
                step()
    except (Absent, TimeUp) as why:
        raise Absent(str(why)) from why
    except Exception as error:  # one peer's failure is a line in the report, not the end of the run
        raise Absent(f"failed: {reason(error)}") from error
    return Runner(step, params, FIRST_STEPS)


def _fused(flatten: bool, case: Case, start: list[Tensor], grads: list[Tensor]) -> Runner:
    try:
        from radam_fused import FusedRAdam, available_backends
    except ImportError as error:
        raise Absent(f"radam_fused does not import: {error}") from error
    missing = available_backends().get("cpu")
    if missing is not None:
        raise Absent(missing)
    params = _parameters(start, grads)
    # flatten=True copies the gradients into a buffer of its own; the others go on sharing theirs.
    optimizer = FusedRAdam(case.grouped(params), backend="cpu", flatten=flatten, **HYPERPARAMETERS)
    for _ in range(FIRST_STEPS):
        optimizer.step()
    return Runner(optimizer.step, params, FIRST_STEPS)


def _ceiling(case: Case, start: list[Tensor], grads: list[Tensor]) -> Runner:
    if case.flat_ceiling:
        p, g = ([torch.cat([value.flatten() for value in values])] for values in (start, grads))
    else:
        p, g = [value.clone() for value in start], grads
    m, v = ([torch.zeros_like(value) for value in p] for _ in range(2))
    try:
        add = bandwidth_ceiling.prepare(p, g, m, v, torch.get_num_threads())
    except (RuntimeError, OSError) as error:
        raise Absent(str(error)) from error
    arrays = (p, g, m, v)  # the call holds addresses only; the default argument keeps what lies there

    def step(_arrays: object = arrays) -> None:
        add()

    return Runner(step)


def _adapted(peer: Peer) -> Contestant:
    options: dict[str, Any] = {"radam": peer.same_update, "kind": peer.kind}
    build = partial(_peer, peer)
    return Contestant(
        peer.name, peer.label, "peer", build, peer.arrays, bytes_per_element=peer.bytes_per_element(), **options
    )


CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant("ceiling", "ceiling (adds only)", "ceiling", _ceiling, arrays=4),
        Contestant("fused-flat", "FusedRAdam, flatten", "ours", partial(_fused, True), 5, radam=True, kind="radam"),
        Contestant("fused", "FusedRAdam", "ours", partial(_fused, False), 3, radam=True, kind="radam"),
        *map(_adapted, PEERS.values()),
    )
}
ALWAYS = [name for name, contestant in CONTESTANTS.items() if contestant.role != "peer"]
"""In every heat: what the others are held against."""


def with_peers(names: Sequence[str]) -> list[Contestant]:
    """Who takes part: those of `ALWAYS`, and these peers."""
    return [CONTESTANTS[name] for name in (*ALWAYS, *names)]
