"""The peers, one small adapter each, for the CPU and the GPU suite alike.

All get the same parameters and gradients, lr = 1e-3, betas = (0.9, 0.999), eps = 1e-8 and no weight decay. A peer that
is not installed or does not serve the device raises `Absent` with the reason, which is reported in its place. What can
be installed from the package index is in requirements/peers.txt; a checkout under ``peers/`` that imports counts as
installed (``peers/apex``, built in place).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

HYPERPARAMETERS: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
CHECKOUTS = Path(__file__).parents[2] / "peers"

Make = Callable[[list[Any]], torch.optim.Optimizer]
"""Called with parameters or groups of them."""


class Absent(Exception):
    """Why a contestant cannot run here."""


@dataclass(frozen=True)
class Peer:
    """One row of the tables.

    Attributes:
        name: what ``--peers`` calls it.
        label: what tables and plots call it.
        make: the optimizer; raises `Absent`.
        kind: "radam", "adam" or "schedule-free": what it computes.
        devices: what it serves.
        state_bytes: of one element's whole state: 8 for two moments in fp32. None for moments in the parameter's dtype.
        arrays: in fp32, how many arrays of the size of the parameters it holds at its largest, temporaries included.
        compiled: whether its step runs under torch.compile.
        most_tensors: by device, above so many it is not tried: it compiles, or launches dozens of kernels, for each.
        setup: by device, seconds that its first steps may take, where they compile something.
        same_update: whether its parameters have to be torch.optim.RAdam's.
        writes_grads: whether it needs gradients of its own, because its step leaves something else in them.
    """

    name: str
    label: str
    make: Make
    kind: str
    devices: tuple[str, ...] = ("cpu", "cuda")
    state_bytes: int | None = None
    arrays: int = 4
    compiled: bool = False
    most_tensors: dict[str, int] | None = None
    setup: dict[str, float] | None = None
    same_update: bool = False
    writes_grads: bool = False

    @property
    def from_torch(self) -> bool:
        return self.label.startswith("torch ")

    def bytes_per_element(self) -> int:
        """Bytes of a step in fp32: g read, p and the state read and written."""
        return 12 + 2 * (8 if self.state_bytes is None else self.state_bytes)

    def check(self, tensors: int, device: str) -> None:
        """Raises `Absent` where it would be no use to try."""
        if device not in self.devices:
            raise Absent(f"serves {' and '.join(self.devices)} alone")
        most = (self.most_tensors or {}).get(device)
        if most is not None and tensors > most:
            raise Absent(f"not tried beyond {most:,} tensors")

    def step(self, optimizer: torch.optim.Optimizer) -> Callable[[], object]:
        """What is timed; a peer that compiles takes its first step here."""
        if not self.compiled:
            return optimizer.step
        optimizer.step()  # makes the state, which is then no part of what is compiled
        torch._dynamo.reset()
        return torch.compile(lambda: optimizer.step())


def reason(error: BaseException) -> str:
    """An exception in a line."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]


def find(module: str) -> Any:
    """A module, installed or in a checkout under ``peers/``.

    Raises:
        Absent: it does not import.
    """
    folders = [CHECKOUTS, *sorted(CHECKOUTS.glob("*/"))] if CHECKOUTS.is_dir() else []
    sys.path += [str(folder) for folder in folders if str(folder) not in sys.path]
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever a half-installed package throws when it is imported
        raise Absent(reason(error)) from error


def _torch(optimizer: Callable[..., torch.optim.Optimizer], **options: object) -> Make:
    return lambda params: optimizer(params, **HYPERPARAMETERS, **options)


def _elsewhere(module: str, name: str, **options: object) -> Make:
    def make(params: list[Any]) -> torch.optim.Optimizer:
        optimizer = getattr(find(module), name)
        try:
            return optimizer(params, **HYPERPARAMETERS, **options)
        except Exception as error:  # the part that was not built shows here
            raise Absent(reason(error)) from error

    return make


def _radam_to_compile(params: list[Any]) -> torch.optim.Optimizer:
    """On a GPU the step counts have to be on the device too."""
    first = params[0]["params"][0] if isinstance(params[0], dict) else params[0]
    return torch.optim.RAdam(params, **HYPERPARAMETERS, foreach=True, capturable=first.is_cuda)


def _schedule_free(params: list[Any]) -> torch.optim.Optimizer:
    optimizer = _elsewhere("schedulefree", "RAdamScheduleFree")(params)
    optimizer.train()  # type: ignore[attr-defined]
    return optimizer


_RADAM, _ADAM, _ADAMW = torch.optim.RAdam, torch.optim.Adam, torch.optim.AdamW
_SLOW = {"cuda": 1000}
_COMPILES = {"cpu": 200, "cuda": 200}

PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "radam-foreach", "torch RAdam, foreach", _torch(_RADAM, foreach=True), "radam", arrays=6, same_update=True
        ),
        Peer(
            "radam-single",
            "torch RAdam, single",
            _torch(_RADAM, foreach=False),
            "radam",
            arrays=8,
            most_tensors=_SLOW,
            same_update=True,
        ),
        Peer("adamw-fused", "torch AdamW, fused", _torch(_ADAMW, fused=True), "adam", arrays=3),
        Peer("adam-fused", "torch Adam, fused", _torch(_ADAM, fused=True), "adam", arrays=3),
        Peer("apex", "apex FusedAdam", _elsewhere("apex.optimizers", "FusedAdam"), "adam", ("cuda",), 8),
        Peer(
            "deepspeed",
            "DeepSpeed FusedAdam",
            _elsewhere("deepspeed.ops.adam", "FusedAdam"),
            "adam",
            arrays=3,
            setup={"cpu": 240.0, "cuda": 60.0},
        ),
        Peer(
            "deepspeed-cpu",
            "DeepSpeed CPUAdam",
            _elsewhere("deepspeed.ops.adam", "DeepSpeedCPUAdam"),
            "adam",
            ("cpu",),
            arrays=3,
            setup={"cpu": 240.0},
        ),
        Peer(
            "transformer-engine",
            "TransformerEngine FusedAdam",
            _elsewhere("transformer_engine.pytorch.optimizers", "FusedAdam"),
            "adam",
            ("cuda",),
            8,
        ),
        Peer("optimi-triton", "optimi RAdam, Triton", _elsewhere("optimi", "RAdam", triton=True), "radam", ("cuda",)),
        Peer("optimi", "optimi RAdam", _elsewhere("optimi", "RAdam", triton=False), "radam", arrays=6),
        Peer(
            "pytorch-optimizer",
            "pytorch_optimizer RAdam",
            _elsewhere("pytorch_optimizer", "RAdam", degenerated_to_sgd=True),
            "radam",
            arrays=6,
            most_tensors=_SLOW,
        ),
        Peer("schedule-free", "schedule_free RAdam", _schedule_free, "schedule-free", arrays=7, writes_grads=True),
        Peer(
            "bitsandbytes",
            "bitsandbytes Adam8bit",
            _elsewhere("bitsandbytes.optim", "Adam8bit"),
            "adam",
            state_bytes=2,
            arrays=7,
            most_tensors=_SLOW,
        ),
        Peer("flashoptim", "flashoptim AdamW", _elsewhere("flashoptim", "FlashAdamW"), "adam", ("cuda",), 2),
        # Last: compiling may take long, and then only these are missing.
        Peer(
            "torchao",
            "torchao AdamW8bit",
            _elsewhere("torchao.optim", "AdamW8bit"),
            "adam",
            state_bytes=2,
            arrays=6,
            most_tensors=_COMPILES,
            setup={"cpu": 180.0, "cuda": 60.0},
        ),
        Peer(
            "radam-compiled",
            "torch RAdam, compiled",
            _radam_to_compile,
            "radam",
            arrays=5,
            compiled=True,
            most_tensors=_COMPILES,
            setup={"cpu": 120.0, "cuda": 30.0},
        ),
    )
}


def chosen(names: list[str]) -> list[str]:
    """The peers that names stand for, "torch" for torch's and "all" for everybody, each once, in the order of `PEERS`.

    Raises:
        ValueError: a name that is no peer's.
    """
    for name in names:
        if name not in PEERS and name not in ("all", "torch", "none"):
            raise ValueError(f"no peer {name!r}: all, torch, none, {', '.join(PEERS)}")
    return [
        name
        for name, peer in PEERS.items()
        if name in names or "all" in names or ("torch" in names and peer.from_torch)
    ]
