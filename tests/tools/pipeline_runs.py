"""torch.distributed.pipelining: a rank holds a stage of the model, and an optimizer for it."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from radam_fused import step_in_backward
from tests.tools.small import LIMIT, Run, batch, dtype_of, made, net, train_and_resume

PARTS = 2
"""Of a batch."""


class Loop:
    """A loop of the user's own; each rank saves its stage."""

    def __init__(self, clip: bool, option: str, theirs: bool) -> None:
        self.dtype, rank = dtype_of(option, theirs), dist.get_rank()
        model = net(self.dtype)
        self.part = (model[:2], model[2:])[rank]
        in_backward = option == "step_in_backward" and not theirs
        self.optimizer = made(self.part.parameters(), "plain" if in_backward else option, theirs)
        if in_backward:
            step_in_backward(self.optimizer, accumulate=PARTS)
        if option == "max_grad_norm" and not theirs:
            self.optimizer.grad_norm_group = dist.group.WORLD
        self.clip = clip and (theirs or option != "max_grad_norm")
        stage = PipelineStage(self.part, rank, 2, torch.device("cpu"))
        # The schedule divides gradients once all are there, which is after the steps in backward: so divide the loss.
        share = 1 / PARTS if in_backward else 1.0
        self.schedule = Schedule1F1B(
            stage, PARTS, lambda y, x: (y - x).float().square().mean() * share, scale_grads=not in_backward
        )
        self.share = share

    def step(self, t: int) -> float:
        x = batch(t, 0).to(self.dtype)
        losses: list[Tensor] = []
        warnings.simplefilter("ignore")
        if dist.get_rank() == 0:
            self.schedule.step(x)
        else:
            self.schedule.step(target=x, losses=losses)
        if self.clip:  # the norm of all stages, as a user has to compute it
            square = torch.nn.utils.get_total_norm([p.grad for p in self.part.parameters()]).double().square()
            dist.all_reduce(square)
            torch.nn.utils.clip_grads_with_norm_(self.part.parameters(), LIMIT, square.sqrt().float())
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss = torch.stack(losses).mean() / self.share if losses else torch.zeros(())
        dist.broadcast(loss, 1)
        return loss.item()

    def save(self, folder: str) -> None:
        saved: dict[str, Any] = {"part": self.part.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(saved, f"{folder}/{dist.get_rank()}.pt")

    def load(self, folder: str) -> None:
        saved = torch.load(f"{folder}/{dist.get_rank()}.pt", weights_only=True)
        self.part.load_state_dict(saved["part"])
        self.optimizer.load_state_dict(saved["optimizer"])


def train(clip: bool, option: str, theirs: bool) -> Run:
    """A run of both stages."""
    return train_and_resume(lambda: Loop(clip, option, theirs))
