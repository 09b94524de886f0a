"""The CPU suite's measurements as JSON.

Only this module reads measurements. Tables, plots, targets and the README are made from what `results` returns, so that
they can be made again from a file. Bandwidths count the bytes that a candidate's own step moves at least. A candidate's
lower bound is those bytes divided by the bandwidth at which the roofline moved its own in the same round.

`bench.keys` has the keys that are older than today's words; a share or time of the "floor" is one of the lower bound.
"""

from __future__ import annotations

from typing import Any

import torch

from bench import keys
from bench.harness import correctness, machine, training_steps
from bench.harness.cache_state import FLUSH_BYTES
from bench.harness.interleave import WARMUP, Measurement
from bench.harness.measure import quartiles, rounded
from bench.harness.results import about
from bench.harness.session import Run
from bench.optimizers.bandwidth_roofline import FLAGS
from bench.optimizers.candidates import BASELINE, CPU_CANDIDATES, FIRST_STEPS, OURS
from bench.workloads.cases import BYTES_PER_ELEMENT

SCHEMA = 2
OUR_CANDIDATES = [name for name, candidate in CPU_CANDIDATES.items() if candidate.ours]


def results(run: Run) -> dict[str, Any]:
    """Everything that a run found, ready for JSON."""
    return {
        **about("step", SCHEMA),
        "machine": machine.machine(),
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
        "ceiling_over": "one flat array" if case.flat_roofline else "arrays of the same shapes",
        keys.MEMORY_GROUPS: len(measured.memory_groups),
        "others_share_of_cpu": round(sum(others) / len(others), 3) if others else None,
        "waited_s": round(measured.waited, 1),
        "agrees": measured.correctness.agrees,
        "moved": rounded(measured.correctness.moved, 3),
        keys.CANDIDATES: {name: _candidate(measured, name) for name in measured.candidates},
        keys.SKIPPED: measured.skipped,
    }


def _candidate(measured: Measurement, name: str) -> dict[str, Any]:
    candidate, found = CPU_CANDIDATES[name], measured.correctness
    milliseconds = [1e3 * value for value in measured.seconds(name)]
    moved = candidate.step_bytes(measured.case)
    row: dict[str, Any] = {
        "label": candidate.label,
        "role": candidate.role,
        "kind": candidate.kind,
        "bytes_per_element": moved // measured.case.elements,
        "rounds": len(milliseconds),
        "ms": quartiles(milliseconds),
        # Its time divided by that of each of ours in the same round.
        "times_ours": {ours: quartiles(r) for ours in OUR_CANDIDATES if (r := measured.ratios(name, ours))},
    }
    row["gb_per_s"] = rounded(moved / row["ms"]["median"] / 1e6)
    shares = measured.ratios(keys.ROOFLINE, name)
    if shares:
        part = moved / measured.case.step_bytes()
        row["share_of_floor"] = quartiles([part * share for share in shares])
        row["floor_ms"] = rounded(
            part * quartiles([1e3 * value for value in measured.seconds(keys.ROOFLINE)])["median"]
        )
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
            "role": OURS if name in training_steps.OURS else BASELINE,
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
        keys.SKIPPED: trained.skipped,
    }
