"""Adam's first steps: what warm-up does, what Adam-2k and Adam-eps do for it, and RAdam (the paper's figures 1 to 3).

The model is a post-norm Transformer, as the paper's are, at a learning rate at which Adam without warm-up fails; it
learns the demo's text, and to reverse sequences. Pre-norm Transformers hardly need warm-up: bench/paper/robustness.py
has one.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from bench.paper.sizes import Sizes
from bench.paper.tasks import task
from bench.paper.training import constant, curve, optimizer, train
from bench.paper.units import Unit
from radam_fused.schedules import UntunedLinearWarmup

PART = "early"
TASKS = {"deep": "the demo's text", "reverse": "reversing sequences"}
LR = 3e-3
POINTS = 110

# Histograms of log10 |g|: edges, and after how many steps they are taken.
LOWEST, HIGHEST, BINS = -12.0, 2.0, 56
AT = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)


@dataclass(frozen=True)
class Method:
    label: str
    optimizer: str = "adam"
    warmup: str | None = None
    hold: bool = False
    options: dict[str, Any] = field(default_factory=dict)


METHODS = {
    "adam": Method("Adam, no warm-up"),
    "adam-warmup": Method("Adam, warm-up min(t, T)/T", warmup="tuned"),
    "adam-untuned": Method("Adam, untuned warm-up 2/(1-β2)", warmup="untuned"),
    "adam-2k": Method("Adam-2k", hold=True),
    "adam-eps": Method("Adam-eps, 1e-4", options={"eps": 1e-4}),
    "radam": Method("RAdam, first order", "radam"),
    "radam-exact": Method("RAdam, exact", "radam-exact"),
}


def units(sizes: Sizes, device: str) -> list[Unit]:
    found = []
    for name in TASKS:
        for seed in range(sizes.early_seeds):
            for key, method in METHODS.items():
                settings = {
                    "task": name,
                    "model": sizes.model(name),
                    "method": key,
                    "lr": LR,
                    "seed": seed,
                    "steps": sizes.early_steps,
                    "warmup": sizes.warmup,
                    "hold": sizes.hold if method.hold else 0,
                    "device": device,
                }
                seconds = 1e-3 * getattr(sizes, name).ms * (sizes.early_steps + settings["hold"])
                found.append(Unit(PART, f"{name}/{key}/{seed}", settings, seconds))
    return found


def schedule(method: Method, warmup: int) -> Callable[[Optimizer], LRScheduler]:
    if method.warmup == "tuned":
        return lambda opt: LambdaLR(opt, lambda epoch: min(epoch + 1, warmup) / warmup)
    return UntunedLinearWarmup if method.warmup == "untuned" else constant


def histogram(model: nn.Module) -> dict[str, Any]:
    """Of |g|: the fraction in each bin of log10 |g|, the fraction that is zero or below all bins, and the median."""
    every = torch.cat([p.grad.detach().flatten() for p in model.parameters() if p.grad is not None]).abs().cpu()
    logs = every.log10()
    counts = torch.histc(logs[logs > LOWEST], BINS, LOWEST, HIGHEST) / len(every)
    return {
        "shares": [float(f"{share:.3g}") for share in counts.tolist()],
        "below": float((logs <= LOWEST).float().mean()),
        "median": every.median().item(),
    }


def run(settings: dict[str, Any]) -> dict[str, Any]:
    method, steps = METHODS[settings["method"]], settings["steps"]
    histograms: dict[str, Any] = {}

    def look(step: int, model: nn.Module) -> None:
        if settings["seed"] == 0 and step in AT:
            histograms[str(step)] = histogram(model)

    found = train(
        task(settings["task"], settings["device"], **settings["model"]),
        optimizer(method.optimizer, settings["lr"], **method.options),
        settings["seed"],
        steps,
        schedule(method, settings["warmup"]),
        settings["hold"],
        look,
    )
    losses = found.pop("losses")
    return {
        **found,
        "curve": curve(losses, steps, POINTS),
        "last": statistics.fmean(losses[-max(1, steps // 20) :]),
        "histograms": histograms,
    }


def by_method(records: dict[str, Any], name: str) -> dict[str, list[dict[str, Any]]]:
    """A task's records, by method, in the order of the methods; methods without any are left out."""
    found = {
        key: [r for r in records.values() if r["settings"]["task"] == name and r["settings"]["method"] == key]
        for key in METHODS
    }
    return {key: rows for key, rows in found.items() if rows}


def validation(row: dict[str, Any]) -> float:
    """A run's validation loss; for a run that diverged, that of a model that predicts uniformly."""
    loss = row["result"]["final"]["loss"]
    return row["result"]["chance"] if loss is None else loss


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the seeds; a run that diverged counts as one that predicts uniformly."""

    def mean(values: list[float]) -> float:
        return statistics.fmean(values)

    results = [row["result"] for row in rows]
    finals = [validation(row) for row in rows]
    return {
        "runs": len(results),
        "training": mean([r["chance"] if r["diverged"] or r["last"] is None else r["last"] for r in results]),
        "validation": mean(finals),
        "worst": max(finals),
        "accuracy": mean([r["final"]["accuracy"] or 0.0 for r in results]),
        "diverged": sum(r["diverged"] for r in results),
    }
