"""torch's own ways to share out a model: what a rank does."""

from __future__ import annotations

from tests.tools import torchvision_operators  # noqa: F401  # isort: skip

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.tools.small import LIMIT, Run, batch, dtype_of, made, net, train_and_resume


def _fsdp2(model: nn.Module) -> nn.Module:
    for layer in model.children():
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    return fully_shard(model)


def _float8(gathered: bool) -> Callable[[nn.Module], nn.Module]:
    def shared_out(model: nn.Module) -> nn.Module:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

        config = Float8LinearConfig(enable_fsdp_float8_all_gather=gathered, emulate=True)
        return _fsdp2(convert_to_float8_training(model, config=config))

    return shared_out


WAYS = {
    "float8": _float8(False),
    "float8 gathered": _float8(True),
    "ddp": DistributedDataParallel,
    "fsdp2": _fsdp2,
    "fsdp1": lambda model: FullyShardedDataParallel(model, device_id=torch.device("cpu")),
    "fsdp1 original": lambda model: FullyShardedDataParallel(
        model, device_id=torch.device("cpu"), use_orig_params=True
    ),
}


class Sharded:
    """A loop of the user's own, with torch.distributed.checkpoint."""

    def __init__(self, way: str, option: str, theirs: bool) -> None:
        warnings.simplefilter("ignore")
        self.dtype = dtype_of(option, theirs)
        self.model: Any = WAYS[way](net(self.dtype))
        self.optimizer = made(self.model.parameters(), option, theirs)
        self.clip = None if option in ("max_grad_norm", "step_in_backward") and not theirs else LIMIT

    def step(self, t: int) -> float:
        x = batch(t, dist.get_rank()).to(self.dtype)
        loss = (self.model(x) - x).float().square().mean()
        loss.backward()
        if self.clip is not None:
            if isinstance(self.model, FullyShardedDataParallel):
                self.model.clip_grad_norm_(self.clip)
            else:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def save(self, folder: str) -> None:
        weights, states = get_state_dict(self.model, self.optimizer)
        dcp.save({"model": weights, "optimizer": states}, checkpoint_id=folder)

    def load(self, folder: str) -> None:
        weights, states = get_state_dict(self.model, self.optimizer)
        dcp.load({"model": weights, "optimizer": states}, checkpoint_id=folder)
        set_state_dict(self.model, self.optimizer, model_state_dict=weights, optim_state_dict=states)


def sharded(way: str, clip: bool, option: str, theirs: bool) -> Run:
    """A run under DDP, FSDP2 or FSDP1."""

    def make() -> Sharded:
        loop = Sharded(way, option, theirs)
        loop.clip = loop.clip if clip else None
        return loop

    return train_and_resume(make)
