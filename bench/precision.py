"""What storing state in fewer bits does to learning: ``python -m bench.precision``, a quarter of an hour on two cores.

The demo's GPT and a bfloat16 copy of it, over several seeds, in every form of state that docs/precision.md describes:
final losses, and the cosine between the weights' total change and that of the float32 run. Raw results go to
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

from bench.machine import commit, machine, versions
from radam_fused import FusedRAdam

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))

from corpus import Corpus  # noqa: E402  (examples/ is no package)
from training import Settings, Training  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "precision.json"
REPORT = ROOT / "docs" / "precision.md"
STEPS, LAST = 400, 50
"""Training steps, and how many of their losses at the end are averaged."""
COMPARED = (50, 100, 200, 400)
"""After how many steps the weights' change is compared."""

WHOLE: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16 moments": {"state_dtype": torch.bfloat16},
    "fp16 moments": {"state_dtype": torch.float16},
    "int8 moments": {"state_dtype": torch.int8},
    "Adam": {"rectification": "none"},
}
"""Of the float32 model; the last is the negative control of the cosines."""
HALF: dict[str, dict[str, Any]] = {
    "fp32 master": {"master_weights": "fp32"},
    "split": {"master_weights": "split"},
    "split, int8 moments": {"master_weights": "split", "state_dtype": torch.int8},
    "kahan": {"master_weights": "kahan"},
    "stochastic": {"rounding": "stochastic"},
    "stochastic, int8 moments": {"rounding": "stochastic", "state_dtype": torch.int8},
    "nearest": {},
}
"""Of the bfloat16 model; the last is the control that is worse."""
MODELS = {"float32 model": ("float32", WHOLE), "bfloat16 model": ("bfloat16", HALF)}


def weights(training: Training) -> Tensor:
    return torch.cat([p.detach().float().reshape(-1) for p in training.model.parameters()])


def run(model: str, form: str, seed: int, steps: int) -> dict[str, Any]:
    """One training: its losses, and where its weights went."""
    torch.set_num_threads(1)
    dtype, forms = MODELS[model]
    settings = Settings(steps=steps, seed=seed, dtype=dtype, validations=1)
    training = Training(
        form,
        lambda groups, **given: FusedRAdam(groups, seed=seed, **given, **forms[form]),
        settings,
        Corpus.load("cpu"),
    )
    first = weights(training)
    changes = {}
    for t in range(1, steps + 1):
        training.step()
        if t in COMPARED:
            changes[t] = weights(training) - first
    return {
        "model": model,
        "form": form,
        "seed": seed,
        "loss": statistics.fmean(training.run.losses[-LAST:]),
        "validation": training.run.final_validation,
        "changes": changes,
    }


def cosines(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows with, in place of their weights, cosines against the first form of the same model and seed."""
    exact = {(row["model"], row["seed"]): row["changes"] for row in rows if row["form"] in ("fp32", "fp32 master")}
    for row in rows:
        theirs = exact[row["model"], row["seed"]]
        found = {
            t: torch.cosine_similarity(c.double(), theirs[t].double(), 0).item() for t, c in row["changes"].items()
        }
        same = all(torch.equal(c, theirs[t]) for t, c in row["changes"].items())
        yield {**row, "changes": None, "cosines": found, "same": same}


def table(rows: list[dict[str, Any]], model: str) -> list[str]:
    """A Markdown table of a model's forms: means over the seeds, and the worst cosine."""
    forms = MODELS[model][1]
    mean = {form: statistics.fmean(r["loss"] for r in rows if r["form"] == form) for form in forms}
    exact = next(iter(mean.values()))
    times = sorted({int(t) for row in rows for t in row["cosines"]})
    lines = [
        f"| {model} | loss | against the first | validation | "
        + " | ".join(f"cosine, {t} steps" for t in times)
        + " |",
        "| --- | " + "---: | " * (3 + len(times)),
    ]
    for form in forms:
        mine = [row for row in rows if row["form"] == form]
        losses = [row["loss"] for row in mine]
        spread = f" ± {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
        worst = [min(row["cosines"][t] for row in mine) for t in times]
        cells = [
            form,
            f"{mean[form]:.4f}{spread}",
            "same bits" if all(row["same"] for row in mine) else f"{100 * (mean[form] / exact - 1):+.3f} %",
            f"{statistics.fmean(row['validation'] for row in mine):.4f}",
            *(f"{cosine:.5f}" for cosine in worst),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def write(rows: list[dict[str, Any]], report: Path) -> None:
    """Puts the tables between the report's markers."""
    text = report.read_text()
    begin, end = "<!-- learning -->\n", "<!-- /learning -->"
    head, _, rest = text.partition(begin)
    tail = rest.partition(end)[2]
    tables = [table([row for row in rows if row["model"] == model], model) for model in MODELS]
    body = "\n\n".join("\n".join(lines) for lines in tables)
    report.write_text(f"{head}{begin}{body}\n{end}{tail}")


def main() -> None:
    """Runs what was asked for, saves it, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", type=Path, default=REPORT)
    arguments = parser.parse_args()
    cases = [
        (model, form, seed, arguments.steps)
        for seed in range(arguments.seeds)
        for model, (_, forms) in MODELS.items()
        for form in forms
    ]
    with ProcessPoolExecutor(arguments.workers) as pool:
        waiting = [pool.submit(run, *case) for case in cases]
        rows = [done.result() for done in track(as_completed(waiting), "training", total=len(cases))]
    order = {case[:3]: k for k, case in enumerate(cases)}
    rows = sorted(cosines(rows), key=lambda row: order[row["model"], row["form"], row["seed"]])
    arguments.results.write_text(
        json.dumps({"machine": machine(), "versions": versions(), "commit": commit(), "rows": rows}, indent=1) + "\n"
    )
    write(rows, arguments.report)
    for model in MODELS:
        print("\n".join(table([row for row in rows if row["model"] == model], model)), end="\n\n")


if __name__ == "__main__":
    main()
