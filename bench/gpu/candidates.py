"""Who takes part: FusedRAdam in its four forms on a GPU, and the peers, the absent with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.optimizers.baselines import HYPERPARAMETERS, PEERS, Absent, Make, Peer
from bench.workloads.cases import Case


@dataclass
class Runner:
    """An optimizer set up over a case's parameters, which have their gradients; `step` is what is timed."""

    optimizer: torch.optim.Optimizer
    params: list[Tensor]
    step: Callable[[], object]


@dataclass(frozen=True)
class Contestant:
    """One row of the tables.

    Attributes:
        name, label: for files and for people.
        backend: FusedRAdam's, or None for a peer.
        flatten: FusedRAdam's.
        make: the optimizer; raises `Absent` where it is not installed.
        kind: what it computes, as `bench.optimizers.baselines.Peer`'s.
        moments: bytes of an element's whole state; None for two moments in the parameter's dtype.
        peer: what it adapts; None for FusedRAdam.
        setup: seconds that its first steps may take, where they compile something; None for no limit.
    """

    name: str
    label: str
    make: Make
    kind: str
    backend: str | None = None
    flatten: bool = False
    moments: int | None = None
    peer: Peer | None = None
    setup: float | None = None

    @property
    def ours(self) -> bool:
        return self.backend is not None

    def pass_bytes(self, case: Case, dtype: torch.dtype) -> int:
        """Bytes that its pass has to move: reads p, g and the state, writes p and the state."""
        moments = 2 * dtype.itemsize if self.moments is None else self.moments
        return (3 * dtype.itemsize + 2 * moments) * case.elements

    def build(self, case: Case, params: list[Tensor], grads: list[Tensor]) -> Runner:
        """Takes the parameters over.

        Raises:
            Absent: with the reason why it does not run here.
        """
        if self.peer is not None:
            self.peer.check(case.tensors, "cuda")
        for param, grad in zip(params, grads, strict=True):
            param.requires_grad_().grad = grad
        optimizer = self.make(case.grouped(params))
        return Runner(optimizer, params, self.peer.step(optimizer) if self.peer else optimizer.step)


def fused(backend: str, flatten: bool) -> Contestant:
    """FusedRAdam with one of its backends."""

    def make(params: list[Tensor]) -> torch.optim.Optimizer:
        from radam_fused import FusedRAdam, available_backends

        reason = available_backends()[backend]
        if reason is not None:
            raise Absent(reason)
        return FusedRAdam(params, backend=backend, flatten=flatten, **HYPERPARAMETERS)

    return Contestant(
        name=backend + ("-flat" if flatten else ""),
        label=f"FusedRAdam {backend}" + (", flatten" if flatten else ""),
        make=make,
        kind="radam",
        backend=backend,
        flatten=flatten,
        moments=8,
    )


def adapted(peer: Peer) -> Contestant:
    """A peer of `bench.optimizers.baselines` on a GPU."""
    return Contestant(
        name=peer.name,
        label=peer.label,
        make=peer.make,
        kind=peer.kind,
        peer=peer,
        moments=peer.state_bytes,
        setup=(peer.setup or {}).get("cuda"),
    )


CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        *(fused(backend, flat) for backend in ("cuda", "triton") for flat in (False, True)),
        # What compiles or builds something comes last: that may take long, and then only this is missing.
        *sorted(map(adapted, PEERS.values()), key=lambda contestant: contestant.setup is not None),
    )
}
