"""Robustness to the learning rate: SGD with momentum, Adam and RAdam over learning rates, tasks and seeds.

The measure is the spread: the largest minus the smallest final loss of one seed over the learning rates, over
the paper's four and over all. No final loss counts for more than that of a model that predicts uniformly, which is
also that of a run that diverged; otherwise a single such run would dominate the spread.

β2 is 0.99, as in the demo: RAdam's warm-up takes about 2 / (1-β2) steps, of a run of several hundred. The paper's runs
were eighty thousand steps long; with β2 = 0.999 the runs here would consist of warm-up alone.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

from bench.paper import tasks
from bench.paper.sizes import Sizes
from bench.paper.tasks import task
from bench.paper.training import cosine, curve, optimizer, train
from bench.paper.units import Unit

PART = "robustness"
BETA2 = 0.99
OPTIMIZERS = ("sgd", "adam", "radam")
PAPER_LRS = (0.1, 0.03, 0.01, 0.003)
TASKS = {
    "digits": "scikit-learn's digits, a small ResNet",
    "cifar10": "CIFAR10, a ResNet",
    "text": "the language model: the demo's GPT (pre-norm)",
    "deep": "the language model, six layers, post-norm",
}
SHORT = {"digits": "digits, ResNet", "cifar10": "CIFAR10, ResNet", "text": "text, pre-norm", "deep": "text, post-norm"}
POINTS = 25


def units(sizes: Sizes, device: str) -> list[Unit]:
    found = []
    for name in [*tasks.images(), "text", "deep"]:
        steps = sizes.steps[name].robustness
        for seed in range(sizes.seeds):
            for key in OPTIMIZERS:
                for lr in sizes.lrs:
                    settings = {
                        "task": name,
                        "model": sizes.model(name),
                        "optimizer": key,
                        "lr": lr,
                        "beta2": BETA2,
                        "seed": seed,
                        "steps": steps,
                        "device": device,
                    }
                    seconds = 1e-3 * getattr(sizes, name).ms * steps
                    found.append(Unit(PART, f"{name}/{key}/{lr:g}/{seed}", settings, seconds))
    return found


def run(settings: dict[str, Any]) -> dict[str, Any]:
    steps = settings["steps"]
    found = train(
        task(settings["task"], settings["device"], **settings["model"]),
        optimizer(settings["optimizer"], settings["lr"], settings["beta2"]),
        settings["seed"],
        steps,
        cosine(steps),
    )
    losses = found.pop("losses")
    return {**found, "curve": curve(losses, steps, POINTS)}


def charged(result: dict[str, Any]) -> float:
    """A run's final loss, at most that of a model that predicts uniformly."""
    loss = result["final"]["loss"]
    return result["chance"] if loss is None else min(loss, result["chance"])


def losses(records: dict[str, Any], name: str, key: str) -> dict[float, dict[int, float]]:
    """Final losses of an optimizer on a task, by learning rate and seed."""
    found: dict[float, dict[int, float]] = {}
    for record in records.values():
        settings = record["settings"]
        if settings["task"] == name and settings["optimizer"] == key:
            found.setdefault(settings["lr"], {})[settings["seed"]] = charged(record["result"])
    return dict(sorted(found.items(), reverse=True))


def accuracies(records: dict[str, Any], name: str, key: str) -> dict[float, list[float]]:
    """Final accuracies, by learning rate; 0.1 or less is chance on ten classes, and stands for a run that diverged."""
    found: dict[float, list[float]] = {}
    for record in records.values():
        settings = record["settings"]
        if settings["task"] == name and settings["optimizer"] == key:
            found.setdefault(settings["lr"], []).append(record["result"]["final"]["accuracy"] or 0.0)
    return dict(sorted(found.items(), reverse=True))


def spreads(records: dict[str, Any], name: str, key: str, lrs: tuple[float, ...] | None = None) -> dict[int, float]:
    """Each seed's spread over the paper's learning rates, or those given; nothing where fewer than two were run."""
    by_lr = losses(records, name, key)
    chosen = [lr for lr in by_lr if lr in (PAPER_LRS if lrs is None else lrs)]
    if len(chosen) < 2:
        return {}
    seeds = set.intersection(*(set(by_lr[lr]) for lr in chosen))
    return {
        seed: max(by_lr[lr][seed] for lr in chosen) - min(by_lr[lr][seed] for lr in chosen) for seed in sorted(seeds)
    }


def compare(ours: dict[int, float], theirs: dict[int, float]) -> dict[str, float]:
    """Paired over seeds: the mean difference ours - theirs, its standard error, in how many seeds ours is smaller."""
    seeds = sorted(set(ours) & set(theirs))
    differences = [ours[seed] - theirs[seed] for seed in seeds]
    deviation = statistics.stdev(differences) if len(differences) > 1 else math.nan
    return {
        "mean": statistics.fmean(differences),
        "error": deviation / math.sqrt(len(differences)),
        "smaller": sum(value < 0 for value in differences),
        "seeds": len(seeds),
    }


def verdict(found: dict[str, float]) -> str:
    """Words for a paired difference: clear if all seeds agree and the mean is over two standard errors from 0."""
    clear = abs(found["mean"]) > 2 * found["error"]
    if clear and found["smaller"] == found["seeds"]:
        return "below"
    if clear and found["smaller"] == 0:
        return "above"
    return "not clearly different from"


def best(records: dict[str, Any], name: str, key: str) -> tuple[float, float]:
    """The learning rate with the lowest mean final loss, and that."""
    means = {lr: statistics.fmean(by_seed.values()) for lr, by_seed in losses(records, name, key).items()}
    lr = min(means, key=lambda rate: means[rate])
    return lr, means[lr]


def usable(records: dict[str, Any], name: str) -> dict[str, int]:
    """At how many learning rates each optimizer ends near the best mean of all of them, the spread's other side.

    Near: within a tenth of the way from there to the loss of a model that knows nothing.
    """
    means = {
        key: [statistics.fmean(by_seed.values()) for by_seed in losses(records, name, key).values()]
        for key in OPTIMIZERS
    }
    lowest = min(value for values in means.values() for value in values)
    chance = max(r["result"]["chance"] for r in records.values() if r["settings"]["task"] == name)
    near = lowest + 0.1 * (chance - lowest)
    return {key: sum(value <= near for value in values) for key, values in means.items()}


def mean_loss(records: dict[str, Any], name: str, key: str, lrs: tuple[float, ...] | None = None) -> float:
    """Of all seeds, over the learning rates given, or over all; not a number where there is none."""
    by_lr = losses(records, name, key)
    means = [statistics.fmean(by_seed.values()) for lr, by_seed in by_lr.items() if lrs is None or lr in lrs]
    return statistics.fmean(means) if means else math.nan


def every_lr(records: dict[str, Any], name: str) -> tuple[float, ...]:
    """The learning rates that a task was run with, largest first."""
    settings = [record["settings"] for record in records.values()]
    return tuple(sorted({s["lr"] for s in settings if s["task"] == name}, reverse=True))
