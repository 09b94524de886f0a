"""Learning with state stored in fewer bits: ``python -m bench.studies.low_precision_training``, in six minutes.

The demo's GPT and a bfloat16 copy of it are trained over several seeds, with the state formats that docs/precision.md
describes. Whole runs give losses. Short runs, at a learning rate at which training does not yet magnify every
difference, give the cosine between the weights' total change and that with the first format. Raw results go to
bench/results/precision.json, and the tables into docs/precision.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from bench.harness.machine import commit, machine, versions
from bench.report.document import replace_between
from radam_fused import FusedRAdam

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from corpus import Corpus  # noqa: E402  (examples/ is no package)
from training import Settings, Training  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "precision.json"
REPORT = ROOT / "docs" / "precision.md"
STEPS, LR, LAST = 400, 1e-3, 50
"""Of a whole run; `LAST` is how many losses at its end are averaged. The demo's own rate is four times this one."""
SHORT_STEPS = 100
COMPARED = (25, 50, 100)
"""Steps of a short run after which the weights' change is compared."""

WHOLE: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16 moments": {"state_dtype": torch.bfloat16},
    "fp16 moments": {"state_dtype": torch.float16},
    "int8 moments": {"state_dtype": torch.int8},
    "Adam": {"rectification": "none"},
}
"""Of the float32 model; the last format is the negative control of the cosines."""
HALF: dict[str, dict[str, Any]] = {
    "fp32 master": {"master_weights": "fp32"},
    "split": {"master_weights": "split"},
    "split, int8 moments": {"master_weights": "split", "state_dtype": torch.int8},
    "kahan": {"master_weights": "kahan"},
    "stochastic": {"rounding": "stochastic"},
    "stochastic, int8 moments": {"rounding": "stochastic", "state_dtype": torch.int8},
    "nearest": {},
}
"""Of the bfloat16 model; the last format is the negative control, which must be worse."""
LONG = ("fp32", "int8 moments", "fp32 master", "split", "kahan", "stochastic", "nearest")
"""The formats that also get whole runs."""
MODELS = {"float32 model": ("float32", WHOLE), "bfloat16 model": ("bfloat16", HALF)}


def weights(training: Training) -> Tensor:
    return torch.cat([p.detach().float().reshape(-1) for p in training.model.parameters()])


def run(model: str, form: str, seed: int, steps: int, lr: float) -> dict[str, Any]:
    """Trains once; returns the losses and the change of the weights."""
    torch.set_num_threads(1)
    dtype, formats = MODELS[model]
    settings = Settings(steps=steps, lr=lr, seed=seed, dtype=dtype, validations=1)
    training = Training(
        form,
        lambda groups, **given: FusedRAdam(groups, seed=seed, **given, **formats[form]),
        settings,
        Corpus.load("cpu"),
    )
    first = weights(training)
    changes = {}
    for t in range(1, steps + 1):
        training.step()
        if t in COMPARED and steps == SHORT_STEPS:
            changes[t] = weights(training) - first
    return {
        "model": model,
        "form": form,
        "seed": seed,
        "steps": steps,
        "loss": statistics.fmean(training.run.losses[-LAST:]),
        "validation": training.run.final_validation,
        "changes": changes,
    }


def cosines(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows with cosines to the first format of the same model and seed in place of their weights."""
    exact = {(row["model"], row["seed"]): row["changes"] for row in rows if row["form"] in ("fp32", "fp32 master")}
    for row in rows:
        theirs = exact[row["model"], row["seed"]]
        found = {
            t: torch.cosine_similarity(c.double(), theirs[t].double(), 0).item() for t, c in row["changes"].items()
        }
        same = all(torch.equal(c, theirs[t]) for t, c in row["changes"].items())
        yield {**row, "changes": None, "cosines": found, "same": same}


def markdown(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def losses_table(rows: list[dict[str, Any]], model: str) -> str:
    """Whole runs of a model: means over the seeds, and the difference from the first format's, seed by seed."""
    mine = {form: [row for row in rows if row["form"] == form] for form in MODELS[model][1] if form in LONG}
    first = next(iter(mine.values()))
    body = []
    for form, runs in mine.items():
        losses = [row["loss"] for row in runs]
        ratios = [100 * (row["loss"] / exact["loss"] - 1) for row, exact in zip(runs, first, strict=True)]
        spread = f" ± {statistics.stdev(ratios):.2f}" if len(ratios) > 1 else ""
        same = losses == [exact["loss"] for exact in first]
        body.append(
            [
                form,
                f"{statistics.fmean(losses):.4f}",
                "the same" if same else f"{statistics.fmean(ratios):+.2f} %{spread}",
                f"{statistics.fmean(row['validation'] for row in runs):.4f}",
            ]
        )
    return markdown([model, "loss", "against the first, by seed", "validation"], body)


def cosines_table(rows: list[dict[str, Any]], model: str) -> str:
    """Short runs of a model: the lowest cosine of all seeds."""
    body = []
    for form in MODELS[model][1]:
        mine = [row for row in rows if row["form"] == form]
        worst = [f"{min(row['cosines'][t] for row in mine):.5f}" for t in COMPARED]
        body.append([form, *(["same bits"] * len(worst) if all(row["same"] for row in mine) else worst)])
    return markdown([model, *(f"{t} steps" for t in COMPARED)], body)


def tables(rows: list[dict[str, Any]]) -> str:
    """All tables, in the order of docs/precision.md."""
    found = []
    for table, steps in ((losses_table, False), (cosines_table, True)):
        for model in MODELS:
            chosen = [r for r in rows if r["model"] == model and (r["steps"] == SHORT_STEPS) == steps]
            found.append(table(chosen, model))
    return "\n\n".join(found)


def main() -> None:
    """Trains, saves the rows, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--lr", type=float, default=LR)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", type=Path, default=REPORT)
    arguments = parser.parse_args()
    cases = [
        (model, form, seed, steps, lr)
        for steps, lr in ((arguments.steps, arguments.lr), (SHORT_STEPS, LR))
        for seed in range(arguments.seeds)
        for model, (_, formats) in MODELS.items()
        for form in formats
        if form in LONG or steps == SHORT_STEPS
    ]
    with ProcessPoolExecutor(arguments.workers) as pool:
        waiting = [pool.submit(run, *case) for case in cases]
        rows = [done.result() for done in track(as_completed(waiting), "training", total=len(cases))]
    order = {case[:4]: k for k, case in enumerate(cases)}
    rows.sort(key=lambda row: order[row["model"], row["form"], row["seed"], row["steps"]])
    whole = [{**row, "changes": None} for row in rows if row["steps"] != SHORT_STEPS]
    rows = [*whole, *cosines([row for row in rows if row["steps"] == SHORT_STEPS])]
    arguments.results.write_text(
        json.dumps({"machine": machine(), "versions": versions(), "commit": commit(), "rows": rows}, indent=1) + "\n"
    )
    replace_between(arguments.report, "learning", tables(rows))
    print(tables(rows))


if __name__ == "__main__":
    main()
