"""PyTorch Lightning with manual optimization, on two processes: what a rank does."""

from __future__ import annotations

from tests.tools import torchvision_operators  # noqa: F401  # isort: skip

import logging
import os
from typing import Any

import lightning
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader

from tests.tools.accelerate_runs import as_torchrun
from tests.tools.small import LIMIT, SAVED_AT, STEPS, Layouts, Run, batch, dtype_of, made, net, shared_folder


class Manual(lightning.LightningModule):
    """The user's module, which steps by itself."""

    def __init__(self, clip: bool, option: str, theirs: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.kind = option, theirs
        self.dtype_used = dtype_of(option, theirs)
        self.net = net(self.dtype_used)
        self.clip = clip and (theirs or option != "max_grad_norm")
        self.losses: list[float] = []

    def training_step(self, t: Tensor, _: int) -> None:
        x = batch(int(t), dist.get_rank()).to(self.dtype_used)
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss = (self.net(x) - x).float().square().mean()
        self.manual_backward(loss)
        if self.clip:
            self.clip_gradients(optimizer, gradient_clip_val=LIMIT, gradient_clip_algorithm="norm")
        optimizer.step()
        self.losses.append(loss.item())

    def configure_optimizers(self) -> Any:
        return made(self.net.parameters(), *self.kind)


class Here(LightningEnvironment):
    """The processes are there already, and so is their group."""

    creates_processes_externally = True  # type: ignore[assignment]

    def global_rank(self) -> int:
        return dist.get_rank()

    def local_rank(self) -> int:
        return dist.get_rank()

    def world_size(self) -> int:
        return dist.get_world_size()

    def set_global_rank(self, rank: int) -> None:
        pass

    def set_world_size(self, size: int) -> None:
        pass


def fit(module: Manual, folder: str, strategy: Any, resume: str | None = None) -> list[float]:
    """The losses of a run, with a checkpoint in between."""
    as_torchrun()
    logging.disable(logging.WARNING)
    saving = lightning.pytorch.callbacks.ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=SAVED_AT, save_top_k=-1
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        plugins=[Here()],
        max_steps=STEPS,
        use_distributed_sampler=False,
        callbacks=[saving],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    first = 0 if resume is None else SAVED_AT  # a resumed run reads from the loader's beginning
    loader: Any = DataLoader(torch.arange(first, first + STEPS))  # type: ignore[arg-type]
    trainer.fit(module, loader, ckpt_path=resume, weights_only=False)
    return module.losses


def train(clip: bool, option: str, theirs: bool) -> Run:
    """A run under DistributedDataParallel, and one that resumes."""
    folder = shared_folder()
    with Layouts() as layouts:
        losses = fit(Manual(clip, option, theirs), folder, DDPStrategy(process_group_backend="gloo"))
    saved = os.path.join(folder, f"step={SAVED_AT}.ckpt")
    resumed = fit(Manual(clip, option, theirs), folder + "/r", DDPStrategy(process_group_backend="gloo"), saved)
    return Run(losses, resumed[-(STEPS - SAVED_AT) :], layouts.steps)


def fully_sharded(option: str, theirs: bool) -> None:
    """Lightning's FSDPStrategy, which it keeps for GPUs."""
    fit(Manual(True, option, theirs), shared_folder(), lightning.pytorch.strategies.FSDPStrategy())
