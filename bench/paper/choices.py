"""Which rectification, which threshold, and SGD before it or not: eight RAdams, and Adam, each with the same seeds.

Differences are paired with the default's run of the same seed: same weights, same batches. With eight comparisons a
task some are two standard errors off by chance, so the report calls one real beyond the t of 99 % (4.6 for five seeds).
"""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

from bench.paper import tasks
from bench.paper.robustness import BETA2, TASKS, charged, compare
from bench.paper.sizes import Sizes
from bench.paper.tasks import task
from bench.paper.training import cosine, curve, optimizer, train
from bench.paper.units import Unit

PART = "choices"
LRS = {"digits": 0.01, "text": 0.01, "deep": 0.003}
DEFAULT = "first_order, ρ > 5, sgd"
ADAM = "none (Adam)"
T99 = {2: 63.7, 3: 9.92, 4: 5.84, 5: 4.60, 6: 4.03, 7: 3.71, 8: 3.50, 9: 3.36, 10: 3.25}  # Student's, two-sided
EARLY = 20

VARIANTS: dict[str, dict[str, Any]] = {
    f"{kind}, ρ > {threshold:g}, {'sgd' if sgd else 'no step'}": {
        "rectification": kind,
        "rho_threshold": threshold,
        "degenerated_to_sgd": sgd,
    }
    for kind, threshold, sgd in itertools.product(("first_order", "exact"), (5.0, 4.0), (True, False))
} | {ADAM: {"rectification": "none"}}


def units(sizes: Sizes, device: str) -> list[Unit]:
    found = []
    for name in [*(name for name in tasks.images() if name == "digits"), "text", "deep"]:
        steps = sizes.steps[name].choices
        for seed in range(sizes.seeds):
            for number, key in enumerate(VARIANTS):
                settings = {
                    "task": name,
                    "model": sizes.model(name),
                    "variant": key,
                    "lr": LRS[name],
                    "beta2": BETA2,
                    "seed": seed,
                    "steps": steps,
                    "device": device,
                }
                seconds = 1e-3 * getattr(sizes, name).ms * steps
                found.append(Unit(PART, f"{name}/{number}/{seed}", settings, seconds))
    return found


def run(settings: dict[str, Any]) -> dict[str, Any]:
    steps = settings["steps"]
    found = train(
        task(settings["task"], settings["device"], **settings["model"]),
        optimizer("radam", settings["lr"], settings["beta2"], **VARIANTS[settings["variant"]]),
        settings["seed"],
        steps,
        cosine(steps),
    )
    losses = found.pop("losses")
    return {
        **found,
        "first": [float(f"{loss:.5g}") for loss in losses[:EARLY]],
        "mean": statistics.fmean(losses) if math.isfinite(losses[-1]) else math.nan,
        "curve": curve(losses, steps, 25),
    }


def table(records: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """A row per variant: final loss, mean of the whole curve, and their paired differences from the default's."""
    by_variant: dict[str, dict[int, dict[str, Any]]] = {key: {} for key in VARIANTS}
    for record in records.values():
        if record["settings"]["task"] == name:
            by_variant[record["settings"]["variant"]][record["settings"]["seed"]] = record["result"]
    rows = []
    for key, runs in by_variant.items():
        if not runs or not by_variant[DEFAULT]:
            continue
        final = {seed: charged(result) for seed, result in runs.items()}
        mean = {seed: _mean(result) for seed, result in runs.items()}
        default = by_variant[DEFAULT]
        rows.append(
            {
                "variant": key,
                "final": statistics.fmean(final.values()),
                "deviation": statistics.stdev(final.values()) if len(final) > 1 else math.nan,
                "accuracy": statistics.fmean(result["final"]["accuracy"] or 0.0 for result in runs.values()),
                "curve": statistics.fmean(mean.values()),
                "final_difference": compare(final, {seed: charged(result) for seed, result in default.items()}),
                "curve_difference": compare(mean, {seed: _mean(result) for seed, result in default.items()}),
            }
        )
    return rows


def _mean(result: dict[str, Any]) -> float:
    return result["chance"] if result["mean"] is None else result["mean"]


def real(difference: dict[str, float]) -> bool:
    """Whether a paired difference is significant at 99 % (Student's t, two-sided)."""
    limit = T99.get(int(difference["seeds"]), 3.2 if difference["seeds"] > 10 else math.inf)
    return abs(difference["mean"]) > limit * difference["error"]


def names(records: dict[str, Any]) -> list[str]:
    """The tasks that have results, in order."""
    have = {record["settings"]["task"] for record in records.values()}
    return [name for name in TASKS if name in have]
