"""Accelerate with two processes, plain and with FSDP2: what a rank does."""

from __future__ import annotations

from tests.tools import torchvision_operators  # noqa: F401  # isort: skip

import os
import warnings
from typing import Any

import accelerate
import torch.distributed as dist
from torch import nn

from tests.tools.small import LIMIT, Run, batch, dtype_of, made, net, train_and_resume


def as_torchrun() -> None:
    """The variables by which a launcher says which process this is."""
    rank, world = str(dist.get_rank()), str(dist.get_world_size())
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=world, LOCAL_WORLD_SIZE=world)
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="29411", ACCELERATE_USE_CPU="1")
    warnings.simplefilter("ignore")


class Loop:
    """A loop of the user's own."""

    def __init__(self, fsdp: bool, clip: bool, option: str, theirs: bool) -> None:
        as_torchrun()
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        plugin = accelerate.FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["Linear"],
            state_dict_type="SHARDED_STATE_DICT",
        )
        if fsdp:  # Accelerate has FSDP for GPUs alone, and without a word takes DistributedDataParallel on CPUs
            accelerate.PartialState(cpu=True)
            accelerate.PartialState._shared_state["distributed_type"] = accelerate.DistributedType.MULTI_GPU
        self.accelerator: Any = accelerate.Accelerator(cpu=True, fsdp_plugin=plugin if fsdp else None)
        assert self.accelerator.is_fsdp2 == fsdp
        self.dtype = dtype_of(option, theirs)
        model = net(self.dtype)
        optimizer = made(model.parameters(), option, theirs)
        self.model: nn.Module
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.clip = clip and (theirs or option != "max_grad_norm")

    def step(self, t: int) -> float:
        x = batch(t, dist.get_rank()).to(self.dtype)
        loss = (self.model(x) - x).float().square().mean()
        self.accelerator.backward(loss)
        if self.clip:
            self.accelerator.clip_grad_norm_(self.model.parameters(), LIMIT)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def save(self, folder: str) -> None:
        self.accelerator.save_state(folder)

    def load(self, folder: str) -> None:
        self.accelerator.load_state(folder)


def train(fsdp: bool, clip: bool, option: str, theirs: bool) -> Run:
    """A run with save_state, and one that begins with load_state."""
    return train_and_resume(lambda: Loop(fsdp, clip, option, theirs))
