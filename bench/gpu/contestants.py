"""Who takes part: FusedRAdam in its four forms on a GPU, and its peers, those that are not installed with the reason.

All get the same parameters and gradients, lr = 1e-3, betas = (0.9, 0.999), eps = 1e-8 and no weight decay.
"""

from __future__ import annotations

import importlib
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from bench.cases import Case
from bench.peers import Absent

HYPERPARAMETERS: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}

Make = Callable[[list[Tensor]], torch.optim.Optimizer]


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
        kind: "radam" or "adam": what it computes.
        wide_moments: whether 16-bit parameters get fp32 moments.
        most_tensors: above so many it is not tried.
        setup: seconds that its first steps may take, where they compile something; None for no limit.
    """

    name: str
    label: str
    make: Make
    kind: str
    backend: str | None = None
    flatten: bool = False
    compiled: bool = False
    wide_moments: bool = False
    most_tensors: int = 1_000_000
    setup: float | None = None

    @property
    def ours(self) -> bool:
        return self.backend is not None

    def moment_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.float32 if self.wide_moments else dtype

    def build(self, case: Case, params: list[Tensor], grads: list[Tensor]) -> Runner:
        """Takes the parameters over.

        Raises:
            Absent: with the reason why it does not run here.
        """
        if case.tensors > self.most_tensors:
            raise Absent(f"not tried beyond {self.most_tensors:,} tensors")
        for param, grad in zip(params, grads, strict=True):
            param.requires_grad_().grad = grad
        optimizer = self.make(params)
        if not self.compiled:
            return Runner(optimizer, params, optimizer.step)
        optimizer.step()  # makes the state, which is then no part of what is compiled
        torch._dynamo.reset()
        return Runner(optimizer, params, torch.compile(lambda: optimizer.step()))


class TimeUp(Exception):
    """Something took longer than it was given."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raises `TimeUp` in the main thread when the time is up; what runs in C is interrupted when it returns."""
    if seconds is None:
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeUp(f"took longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


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
        wide_moments=True,
    )


def _torch(optimizer: Callable[..., torch.optim.Optimizer], **options: object) -> Make:
    return lambda params: optimizer(params, **HYPERPARAMETERS, **options)


def _elsewhere(module: str, name: str, **options: object) -> Make:
    def make(params: list[Tensor]) -> torch.optim.Optimizer:
        try:
            found = getattr(importlib.import_module(module), name)
        except Exception as error:  # whatever a half-installed package throws when it is imported
            raise Absent(f"{type(error).__name__}: {error}".splitlines()[0]) from error
        return found(params, **HYPERPARAMETERS, **options)

    return make


_RADAM, _ADAMW = torch.optim.RAdam, torch.optim.AdamW
PEERS = (
    Contestant("radam-foreach", "torch RAdam, foreach", _torch(_RADAM, foreach=True), "radam"),
    Contestant("adamw-fused", "torch AdamW, fused", _torch(_ADAMW, fused=True), "adam"),
    Contestant("apex", "apex FusedAdam", _elsewhere("apex.optimizers", "FusedAdam"), "adam", wide_moments=True),
    Contestant("deepspeed", "DeepSpeed FusedAdam", _elsewhere("deepspeed.ops.adam", "FusedAdam"), "adam", setup=60.0),
    Contestant(
        "transformer-engine",
        "TransformerEngine FusedAdam",
        _elsewhere("transformer_engine.pytorch.optimizers", "FusedAdam"),
        "adam",
        wide_moments=True,
    ),
    Contestant("optimi", "optimi RAdam, Triton", _elsewhere("optimi", "RAdam", triton=True), "radam"),
    # Last: compiling may take long, and then only this is missing.
    Contestant(
        "radam-compiled",
        "torch RAdam, capturable, compiled",
        _torch(_RADAM, foreach=True, capturable=True),
        "radam",
        compiled=True,
        most_tensors=200,
        setup=30.0,
    ),
)
CONTESTANTS = {
    contestant.name: contestant
    for contestant in (*(fused(backend, flat) for backend in ("cuda", "triton") for flat in (False, True)), *PEERS)
}
