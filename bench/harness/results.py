"""A run in numbers: the JSON that is kept.

This is the only thing that looks at measurements; tables, plots, claims and the README are made from what `results`
returns, so that they can be made again from a file. Times are in milliseconds, bandwidths in GB/s (10^9 bytes) at the
bytes that a contestant's own step has to move. A contestant's floor is those bytes over the bandwidth at which the
ceiling moved its own in the same round.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from pytest_benchmark.stats import Stats

from bench.harness import correctness, machine, training_steps
from bench.harness.cache_state import FLUSH_BYTES
from bench.harness.interleave import WARMUP, Measurement
from bench.harness.session import Run
from bench.optimizers.bandwidth_ceiling import FLAGS
from bench.optimizers.candidates import CONTESTANTS, FIRST_STEPS
from bench.workloads.cases import BYTES_PER_ELEMENT

SCHEMA = 2
OURS = [name for name, contestant in CONTESTANTS.items() if contestant.role == "ours"]


def rounded(value: float, digits: int = 4) -> float:
    """To so many significant digits."""
    return float(f"{value:.{digits}g}")


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Least, quartiles and greatest, as pytest-benchmark computes them."""
    stats = Stats()
    for value in values:
        stats.update(value)
    return {name: rounded(getattr(stats, name)) for name in ("min", "q1", "median", "q3", "max")}


def results(run: Run) -> dict[str, Any]:
    """Everything a run found, ready for JSON."""
    return {
        "schema": SCHEMA,
        "suite": "step",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "machine": machine.machine(),
        "versions": machine.versions(),
        "threads": torch.get_num_threads(),
        "method": {
            "flush_bytes": FLUSH_BYTES,
            "first_steps": FIRST_STEPS,
            "warmup_rounds": WARMUP,
            "bytes_per_element": BYTES_PER_ELEMENT,
            "tolerance": correctness.TOLERANCE,
            "loss_tolerance": training_steps.TOLERANCE,
            "ceiling_flags": " ".join(FLAGS),
            "seed": run.plan.seed,
        },
        "skipped": run.skipped,
        "cases": [_case(measurement) for measurement in run.measurements],
        "training": [_training(trained) for trained in run.trained],
    }


def _case(measured: Measurement) -> dict[str, Any]:
    case, others = measured.case, measured.others
    return {
        "name": case.name,
        "title": case.title,
        "caches": measured.caches,
        "series": case.series,
        "tensors": case.tensors,
        "groups": case.groups,
        "elements": case.elements,
        "ceiling_over": "one flat array" if case.flat_ceiling else "arrays of the same shapes",
        "heats": len(measured.heats),
        "others_share_of_cpu": round(sum(others) / len(others), 3) if others else None,
        "waited_s": round(measured.waited, 1),
        "agrees": measured.agreement.agrees,
        "moved": rounded(measured.agreement.moved, 3),
        "contestants": {name: _contestant(measured, name) for name in measured.contestants},
        "absent": measured.absent,
    }


def _contestant(measured: Measurement, name: str) -> dict[str, Any]:
    contestant, found = CONTESTANTS[name], measured.agreement
    milliseconds = [1e3 * value for value in measured.seconds(name)]
    moved = contestant.bytes_per_element * measured.case.elements
    row: dict[str, Any] = {
        "label": contestant.label,
        "role": contestant.role,
        "kind": contestant.kind,
        "bytes_per_element": contestant.bytes_per_element,
        "rounds": len(milliseconds),
        "ms": quartiles(milliseconds),
        # How many times as long as ours it took, in the same round.
        "times_ours": {ours: quartiles(r) for ours in OURS if (r := measured.ratios(name, ours))},
    }
    row["gb_per_s"] = rounded(moved / row["ms"]["median"] / 1e6)
    shares = measured.ratios("ceiling", name)
    if shares:
        part = contestant.bytes_per_element / BYTES_PER_ELEMENT
        row["share_of_floor"] = quartiles([part * share for share in shares])
        row["floor_ms"] = rounded(part * quartiles([1e3 * value for value in measured.seconds("ceiling")])["median"])
    if name in found.steps:
        row["check"] = {
            "steps": found.steps[name],
            "moves": found.moves[name],
            "required": name in found.required,
            "difference": rounded(found.differences[name], 3) if name in found.differences else None,
            "bits": found.bits.get(name),
        }
    row["all_ms"] = [rounded(value) for value in milliseconds]
    return row


def _training(trained: training_steps.Trained) -> dict[str, Any]:
    differences = trained.differences()
    before = trained.trainings.get(training_steps.BEFORE)
    rows = {}
    for name, one in trained.trainings.items():
        rows[name] = {
            "label": one.label,
            "role": "ours" if name in training_steps.OURS else "peer",
            "ms": quartiles([1e3 * value for value in one.whole]),
            "optimizer_ms": quartiles([1e3 * value for value in one.part]),
            "optimizer_share": quartiles([part / whole for part, whole in zip(one.part, one.whole, strict=True)]),
            "times_before": before and quartiles([a / b for a, b in zip(one.whole, before.whole, strict=True)]),
            "difference": rounded(differences[name], 3) if name in differences else None,
            "losses": [rounded(loss, 6) for loss in one.losses],
        }
    return {
        "name": trained.model.name,
        "title": trained.model.title,
        "tensors": trained.tensors,
        "elements": trained.parameters,
        "agrees": trained.right,
        "optimizers": rows,
        "absent": trained.absent,
    }


def write(found: dict[str, Any], path: Path) -> None:
    """As JSON."""
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
