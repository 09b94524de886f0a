"""The baselines: other optimizers, one small adapter each, for the CPU and the GPU suite.

All get the same parameters and gradients, lr = 1e-3, betas = (0.9, 0.999), eps = 1e-8 and no weight decay. A baseline
that is not installed or does not support the device raises `Skipped`, and the report shows the reason in its place.
requirements/baselines.txt lists those on the package index; a checkout under ``baselines/`` that imports counts as
installed (``baselines/apex``, built in place).
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
CHECKOUTS = Path(__file__).parents[2] / "baselines"

Make = Callable[[list[Any]], torch.optim.Optimizer]
"""Called with parameters or groups of them."""


class Skipped(Exception):
    """A candidate cannot run here; the message is the reason."""


@dataclass(frozen=True)
class Baseline:
    """An optimizer that FusedRAdam is compared with.

    Attributes:
        name: what ``--baselines`` calls it.
        label: what tables and plots call it.
        make: the optimizer; raises `Skipped`.
        kind: "radam", "adam" or "schedule-free": what it computes.
        devices: what it supports.
        state_bytes: per element: 8 for two fp32 moments. None for two moments in the parameter's dtype.
        arrays: in fp32, how many arrays of the parameters' size it holds at most, temporaries included.
        compiled: whether its step runs under torch.compile.
        most_tensors: by device, the most tensors it is tried with: it compiles or launches dozens of kernels for each.
        setup: by device, seconds that its first steps may take, where they compile something.
        same_update: whether its parameters must agree with torch.optim.RAdam's.
        writes_grads: whether a step changes the gradients, so that it needs its own copy.
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

    def check(self, tensors: int, device: str) -> None:
        """Raises `Skipped` where the baseline does not support the device or so many tensors."""
        if device not in self.devices:
            raise Skipped(f"supports {' and '.join(self.devices)} only")
        most = (self.most_tensors or {}).get(device)
        if most is not None and tensors > most:
            raise Skipped(f"not tried beyond {most:,} tensors")

    def step(self, optimizer: torch.optim.Optimizer) -> Callable[[], object]:
        """The call that is timed. A baseline that runs under torch.compile takes its first step here."""
        if not self.compiled:
            return optimizer.step
        optimizer.step()  # creates the state outside of the compiled graph
        torch._dynamo.reset()
        return torch.compile(lambda: optimizer.step())


def reason(error: BaseException) -> str:
    """An exception as one line."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]


def find(module: str) -> Any:
    """A module, installed or in a checkout under ``baselines/``.

    Raises:
        Skipped: the import fails.
    """
    folders = [CHECKOUTS, *sorted(CHECKOUTS.glob("*/"))] if CHECKOUTS.is_dir() else []
    sys.path += [str(folder) for folder in folders if str(folder) not in sys.path]
    try:
        return importlib.import_module(module)
    except Exception as error:  # half-installed packages raise anything
        raise Skipped(reason(error)) from error


def _torch(optimizer: Callable[..., torch.optim.Optimizer], **options: object) -> Make:
    return lambda params: optimizer(params, **HYPERPARAMETERS, **options)


def _elsewhere(module: str, name: str, **options: object) -> Make:
    def make(params: list[Any]) -> torch.optim.Optimizer:
        optimizer = getattr(find(module), name)
        try:
            return optimizer(params, **HYPERPARAMETERS, **options)
        except Exception as error:  # a package whose extension was not built raises here
            raise Skipped(reason(error)) from error

    return make


def _radam_to_compile(params: list[Any]) -> torch.optim.Optimizer:
    """On a GPU, capturable=True keeps the step counts on the device, as compiling requires."""
    first = params[0]["params"][0] if isinstance(params[0], dict) else params[0]
    return torch.optim.RAdam(params, **HYPERPARAMETERS, foreach=True, capturable=first.is_cuda)


def _schedule_free(params: list[Any]) -> torch.optim.Optimizer:
    optimizer = _elsewhere("schedulefree", "RAdamScheduleFree")(params)
    optimizer.train()  # type: ignore[attr-defined]
    return optimizer


_RADAM, _ADAM, _ADAMW = torch.optim.RAdam, torch.optim.Adam, torch.optim.AdamW
_SLOW = {"cuda": 1000}
_COMPILES = {"cpu": 200, "cuda": 200}

BASELINES = {
    baseline.name: baseline
    for baseline in (
        Baseline(
            "radam-foreach", "torch RAdam, foreach", _torch(_RADAM, foreach=True), "radam", arrays=6, same_update=True
        ),
        Baseline(
            "radam-single",
            "torch RAdam, single",
            _torch(_RADAM, foreach=False),
            "radam",
            arrays=8,
            most_tensors=_SLOW,
            same_update=True,
        ),
        Baseline("adamw-fused", "torch AdamW, fused", _torch(_ADAMW, fused=True), "adam", arrays=3),
        Baseline("adam-fused", "torch Adam, fused", _torch(_ADAM, fused=True), "adam", arrays=3),
        Baseline("apex", "apex FusedAdam", _elsewhere("apex.optimizers", "FusedAdam"), "adam", ("cuda",), 8),
        Baseline(
            "deepspeed",
            "DeepSpeed FusedAdam",
            _elsewhere("deepspeed.ops.adam", "FusedAdam"),
            "adam",
            arrays=3,
            setup={"cpu": 240.0, "cuda": 60.0},
        ),
        Baseline(
            "deepspeed-cpu",
            "DeepSpeed CPUAdam",
            _elsewhere("deepspeed.ops.adam", "DeepSpeedCPUAdam"),
            "adam",
            ("cpu",),
            arrays=3,
            setup={"cpu": 240.0},
        ),
        Baseline(
            "transformer-engine",
            "TransformerEngine FusedAdam",
            _elsewhere("transformer_engine.pytorch.optimizers", "FusedAdam"),
            "adam",
            ("cuda",),
            8,
        ),
        Baseline(
            "optimi-triton", "optimi RAdam, Triton", _elsewhere("optimi", "RAdam", triton=True), "radam", ("cuda",)
        ),
        Baseline("optimi", "optimi RAdam", _elsewhere("optimi", "RAdam", triton=False), "radam", arrays=6),
        Baseline(
            "pytorch-optimizer",
            "pytorch_optimizer RAdam",
            _elsewhere("pytorch_optimizer", "RAdam", degenerated_to_sgd=True),
            "radam",
            arrays=6,
            most_tensors=_SLOW,
        ),
        Baseline("schedule-free", "schedule_free RAdam", _schedule_free, "schedule-free", arrays=7, writes_grads=True),
        Baseline(
            "bitsandbytes",
            "bitsandbytes Adam8bit",
            _elsewhere("bitsandbytes.optim", "Adam8bit"),
            "adam",
            state_bytes=2,
            arrays=7,
            most_tensors=_SLOW,
        ),
        Baseline("flashoptim", "flashoptim AdamW", _elsewhere("flashoptim", "FlashAdamW"), "adam", ("cuda",), 2),
        # Last: if compiling takes long, only these are missing.
        Baseline(
            "torchao",
            "torchao AdamW8bit",
            _elsewhere("torchao.optim", "AdamW8bit"),
            "adam",
            state_bytes=2,
            arrays=6,
            most_tensors=_COMPILES,
            setup={"cpu": 180.0, "cuda": 60.0},
        ),
        Baseline(
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
    """The baselines that names stand for, each once, in the order of `BASELINES`.

    "torch" stands for torch's own, "all" for all, "none" for none.

    Raises:
        ValueError: a name is neither.
    """
    for name in names:
        if name not in BASELINES and name not in ("all", "torch", "none"):
            raise ValueError(f"no baseline {name!r}: all, torch, none, {', '.join(BASELINES)}")
    return [
        name
        for name, baseline in BASELINES.items()
        if name in names or "all" in names or ("torch" in names and baseline.from_torch)
    ]
