"""timm: its factory, layer decay, adaptive clipping and EMA."""

from __future__ import annotations

from tests.tools import torchvision_operators  # noqa: F401  # isort: skip

import functools
import logging
from typing import Any

import timm.models
import torch
import torch.distributed as dist
from timm.optim import OptimInfo, create_optimizer_v2
from timm.optim._optim_factory import default_registry
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor

from radam_fused import FusedRAdam, step_in_backward
from tests.tools.small import HYPER, LIMIT, Run, dtype_of, train_and_resume
from tests.tools.table import OPTIONS

default_registry.register(OptimInfo("fusedradam", FusedRAdam, has_betas=True))
default_registry.register(OptimInfo("torchradam", torch.optim.RAdam, has_betas=True))
LIMITS = {"agc": 0.02, "norm": LIMIT}


@functools.cache
def images(t: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(t)
    return torch.randn(8, 3, 16, 16, generator=generator), torch.randint(4, (8,), generator=generator)


class Loop:
    """As timm's train.py has it."""

    def __init__(self, clip: str, option: str, theirs: bool) -> None:
        logging.disable(logging.WARNING)
        torch.manual_seed(0)
        self.dtype = dtype_of(option, theirs)
        sizes: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 2}
        self.model: Any = timm.models.VisionTransformer(**sizes, num_classes=4).to(self.dtype)
        self.optimizer: Any = create_optimizer_v2(
            self.model,
            "torchradam" if theirs else "fusedradam",
            lr=HYPER["lr"],
            weight_decay=0.1,
            layer_decay=0.75,
            betas=HYPER["betas"],
            decoupled_weight_decay=True,
            **({} if theirs else OPTIONS[option]),
        )
        assert len({group["lr_scale"] for group in self.optimizer.param_groups}) > 2
        for group in self.optimizer.param_groups:  # as timm's schedulers do
            group["lr"] = HYPER["lr"] * group["lr_scale"]
        if option == "step_in_backward" and not theirs:
            step_in_backward(self.optimizer)
        self.clip = "" if option == "max_grad_norm" and not theirs else clip
        self.ema = ModelEmaV3(self.model, decay=0.9)

    def step(self, t: int) -> float:
        x, target = images(t % 3)
        loss = torch.nn.functional.cross_entropy(self.model(x.to(self.dtype)).float(), target)
        loss.backward()
        if self.clip:
            dispatch_clip_grad(self.model.parameters(), LIMITS[self.clip], mode=self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.model)
        return loss.item()

    def save(self, folder: str) -> None:
        parts = {"model": self.model, "optimizer": self.optimizer, "ema": self.ema}
        torch.save({name: part.state_dict() for name, part in parts.items()}, f"{folder}/{dist.get_rank()}.pt")

    def load(self, folder: str) -> None:
        saved = torch.load(f"{folder}/{dist.get_rank()}.pt", weights_only=True)
        for name, part in {"model": self.model, "optimizer": self.optimizer, "ema": self.ema}.items():
            part.load_state_dict(saved[name])


def train(clip: str, option: str, theirs: bool) -> Run:
    """The same on each rank; timm's own distributed training is DistributedDataParallel."""
    return train_and_resume(lambda: Loop(clip, option, theirs))
