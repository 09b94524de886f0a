"""One training run, and the optimizers that are compared. Every RAdam here is `FusedRAdam`; Adam is torch's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from bench.paper.tasks import Task
from radam_fused import FusedRAdam

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeSchedule = Callable[[Optimizer], LRScheduler]
BETA2 = 0.999

LABELS = {
    "sgd": "SGD, momentum 0.9",
    "adam": "Adam",
    "radam": "RAdam",
    "radam-exact": "RAdam, exact",
}


def optimizer(name: str, lr: float, beta2: float = BETA2, **options: Any) -> MakeOptimizer:
    """Makes an optimizer by its name, with β1 = 0.9 and no weight decay."""

    def make(parameters: Iterable[nn.Parameter]) -> Optimizer:
        if name == "sgd":
            return torch.optim.SGD(parameters, lr=lr, momentum=0.9)
        if name == "adam":
            return torch.optim.Adam(parameters, lr=lr, betas=(0.9, beta2), **options)
        kind = {"radam": "first_order", "radam-exact": "exact"}[name]
        return FusedRAdam(parameters, lr=lr, betas=(0.9, beta2), **{"rectification": kind, **options})

    return make


def constant(opt: Optimizer) -> LRScheduler:
    return LambdaLR(opt, lambda epoch: 1.0)


def cosine(steps: int) -> MakeSchedule:
    """A schedule from the full learning rate to 0."""
    return lambda opt: LambdaLR(opt, lambda epoch: 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / steps))))


def train(
    task: Task,
    make: MakeOptimizer,
    seed: int,
    steps: int,
    schedule: MakeSchedule = constant,
    hold: int = 0,
    after_backward: Callable[[int, nn.Module], None] | None = None,
) -> dict[str, Any]:
    """The training losses of all steps, and the evaluation; null from where the loss is no longer finite.

    ``hold`` is Adam-2k: so many steps at first in which the second moment alone moves. The learning rate is 0 in them,
    and the momentum starts from 0 after them.
    """
    model = task.model(seed)
    opt = make(model.parameters())
    batches = task.batches(seed)
    if hold:
        _hold(task, model, opt, batches, hold)
    scheduler = schedule(opt)
    losses: list[float] = []
    for step in range(1, steps + 1):
        loss = task.loss(model, next(batches))
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        loss.backward()
        if after_backward:
            after_backward(step, model)
        opt.step()
        opt.zero_grad()
        scheduler.step()
    diverged = not math.isfinite(losses[-1])
    final = {"loss": math.nan, "accuracy": math.nan} if diverged else task.evaluate(model)
    if not math.isfinite(final["loss"]):
        diverged, final = True, {"loss": math.nan, "accuracy": math.nan}
    return {"losses": losses, "diverged": diverged, "final": final, "chance": task.chance}


def _hold(task: Task, model: nn.Module, opt: Optimizer, batches: Any, steps: int) -> None:
    rates = [group["lr"] for group in opt.param_groups]
    for group in opt.param_groups:
        group["lr"] = 0.0
    for _ in range(steps):
        task.loss(model, next(batches)).backward()
        opt.step()
        opt.zero_grad()
    for group, rate in zip(opt.param_groups, rates, strict=True):
        group["lr"] = rate
        for parameter in group["params"]:
            opt.state[parameter]["exp_avg"].zero_()


def curve(losses: list[float], steps: int, points: int) -> dict[str, Any]:
    """Means over equal numbers of steps, with four digits; a run that diverged has a shorter curve."""
    width = max(1, steps // points)
    cut = [losses[i : i + width] for i in range(0, len(losses), width)]
    means = [sum(part) / len(part) for part in cut]
    return {"width": width, "loss": [float(f"{value:.4g}") for value in means]}


def threads(device: str) -> None:
    """One in each worker: the runs are many and small."""
    if device == "cpu":
        torch.set_num_threads(1)
