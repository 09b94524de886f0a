"""torchtitan's OptimizersContainer over FSDP2, with torch.distributed.checkpoint: what a rank does."""

from __future__ import annotations

from tests.tools import torchvision_operators  # noqa: F401  # isort: skip

import logging
import warnings
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.fsdp import fully_shard
from torchtitan.components.optimizer import OptimizersContainer, ParamGroupConfig

from radam_fused import FusedRAdam, step_in_backward
from tests.tools.small import HYPER, LIMIT, Run, batch, dtype_of, net, train_and_resume
from tests.tools.table import OPTIONS


class Optimizers(OptimizersContainer):
    """The user's two lines: what the name stands for, and no ``fused`` and ``foreach`` in its groups."""

    _resolve_optimizer_factory = staticmethod({"FusedRAdam": FusedRAdam, "RAdam": torch.optim.RAdam}.__getitem__)
    _build_impl_kwargs = staticmethod(lambda config: {})


class Loop:
    """As torchtitan's trainer has it."""

    def __init__(self, clip: bool, option: str, theirs: bool) -> None:
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        self.dtype = dtype_of(option, theirs)
        self.model: Any = net(self.dtype)
        for layer in (self.model[0], self.model[2], self.model):
            fully_shard(layer)
        name = "RAdam" if theirs else "FusedRAdam"
        config = Optimizers.Config(
            param_groups=[
                ParamGroupConfig(
                    pattern=r"bias$", optimizer_name=name, optimizer_kwargs={**HYPER, "weight_decay": 0.0}
                ),
                ParamGroupConfig(pattern=r".*", optimizer_name=name, optimizer_kwargs=HYPER),
            ],
            optimizer_factory_kwargs_by_name={} if theirs else {name: OPTIONS[option]},
        )
        self.optimizers: Any = Optimizers(config, model_parts=[self.model])
        assert len(self.optimizers.optimizers) == 1
        if option == "step_in_backward" and not theirs:
            step_in_backward(self.optimizers.optimizers[0])
        self.clip = clip and (theirs or option != "max_grad_norm")

    def step(self, t: int) -> float:
        x = batch(t, dist.get_rank()).to(self.dtype)
        loss = (self.model(x) - x).float().square().mean()
        loss.backward()
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), LIMIT)
        self.optimizers.step()
        self.optimizers.zero_grad()
        return loss.item()

    def save(self, folder: str) -> None:
        dcp.save({"model": self.model.state_dict(), "optimizer": self.optimizers}, checkpoint_id=folder)

    def load(self, folder: str) -> None:
        dcp.load({"model": self.model.state_dict(), "optimizer": self.optimizers}, checkpoint_id=folder)


def train(clip: bool, option: str, theirs: bool) -> Run:
    """A run with a distributed checkpoint, and one that begins with it."""
    return train_and_resume(lambda: Loop(clip, option, theirs))
