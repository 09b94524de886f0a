"""What the ranks train in a tool: a model of 16,576 parameters, and the runs of an option."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from radam_fused import FusedRAdam, step_in_backward
from radam_fused.state.bucket import Bucket
from tests.tools.table import OPTIONS

STEPS, SAVED_AT = 10, 4
"""RAdam rectifies from the sixth step on, so after the checkpoint."""
LIMIT = OPTIONS["max_grad_norm"]["max_grad_norm"]
"""Of the gradients' norm, which is above it in every step."""
HYPER: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1, "decoupled_weight_decay": True}


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """The same each time; its weights are large enough for 8-bit moments, on two ranks too."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64)).to(dtype)


def batch(step: int, rank: int) -> Tensor:
    """A rank's inputs of a step, which are its targets too."""
    return torch.randn(4, 64, generator=torch.Generator().manual_seed(100 * step + rank))


def optimizer_class(theirs: bool) -> type:
    """torch.optim.RAdam for their run."""
    return torch.optim.RAdam if theirs else FusedRAdam


@dataclass
class Run:
    """What a rank has seen of a run."""

    losses: list[float] = field(default_factory=list)
    resumed: list[float] = field(default_factory=list)
    """The losses after the checkpoint, in a second run that begins with it."""
    layouts: list[int] = field(default_factory=list)
    """How many buckets each step has made."""


class Layouts:
    """Counts the buckets that are made while it is entered, and of these those that each step has made."""

    def __enter__(self) -> Layouts:
        self.made, self._init = 0, Bucket.__init__
        self.steps: list[int] = []
        self._hook = register_optimizer_step_post_hook(lambda *_: self.steps.append(self.made - sum(self.steps)))

        def counted(bucket: Bucket, *args: Any, **kwargs: Any) -> None:
            self.made += 1
            self._init(bucket, *args, **kwargs)

        Bucket.__init__ = counted  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        Bucket.__init__ = self._init  # type: ignore[method-assign]
        self._hook.remove()


def dtype_of(option: str, theirs: bool) -> torch.dtype:
    """``split`` is for bfloat16 parameters; it is compared with a float32 model, whose steps it is to make."""
    return torch.bfloat16 if option == "split" and not theirs else torch.float32


def made(parameters: Any, option: str, theirs: bool, **more: Any) -> Any:
    """The optimizer of a run: FusedRAdam with the option, or torch.optim.RAdam."""
    optimizer = optimizer_class(theirs)(parameters, **HYPER, **({} if theirs else OPTIONS[option]), **more)
    if option == "step_in_backward" and not theirs:
        step_in_backward(optimizer)
    return optimizer


class Loop(Protocol):
    """A user's training script."""

    def step(self, t: int) -> float:
        """Trains on the batch of a step; returns the loss."""

    def save(self, folder: str) -> None:
        """Writes a checkpoint."""

    def load(self, folder: str) -> None:
        """Goes on from one."""


def shared_folder() -> str:
    """A new folder, the same on all ranks."""
    folder = [tempfile.mkdtemp() if not dist.is_initialized() or dist.get_rank() == 0 else None]
    if dist.is_initialized():
        dist.broadcast_object_list(folder)
    return str(folder[0])


def train_and_resume(make: Callable[[], Loop]) -> Run:
    """A run with a checkpoint in between, and one that resumes from it."""
    folder = shared_folder()
    with Layouts() as layouts:
        whole = make()
        losses = [whole.step(t) for t in range(SAVED_AT)]
        whole.save(folder)
        losses += [whole.step(t) for t in range(SAVED_AT, STEPS)]
    resumed = make()
    resumed.load(folder)
    return Run(losses, [resumed.step(t) for t in range(SAVED_AT, STEPS)], layouts.steps)
