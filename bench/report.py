"""A run in numbers: the JSON that is kept, and the tables made from it.

`results` is the only thing that looks at measurements; tables and plots are made from what it returns, so that they can
be made again from a file. Times are in milliseconds, bandwidths in GB/s (10^9 bytes) at 28 bytes an element.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from pytest_benchmark.stats import Stats
from rich import box
from rich.console import Console
from rich.table import Table

from bench import machine
from bench.caches import FLUSH_BYTES
from bench.cases import BYTES_PER_ELEMENT
from bench.ceiling import FLAGS
from bench.measure import TOLERANCE, WARMUP, Measurement
from bench.peers import CONTESTANTS
from bench.run import Run

SCHEMA = 1
OURS = [name for name, contestant in CONTESTANTS.items() if contestant.role == "ours"]


def quartiles(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Least, quartiles and greatest, as pytest-benchmark computes them, to so many significant digits."""
    stats = Stats()
    for value in values:
        stats.update(value)
    return {name: float(f"{getattr(stats, name):.{digits}g}") for name in ("min", "q1", "median", "q3", "max")}


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
            "warmup_steps": WARMUP,
            "bytes_per_element": BYTES_PER_ELEMENT,
            "tolerance": TOLERANCE,
            "ceiling_flags": " ".join(FLAGS),
            "seed": run.plan.seed,
        },
        "skipped": run.skipped,
        "cases": [_case(measurement) for measurement in run.measurements],
    }


def _case(measured: Measurement) -> dict[str, Any]:
    case, agreement = measured.case, measured.agreement
    return {
        "name": case.name,
        "title": case.title,
        "caches": measured.caches,
        "tensors": case.tensors,
        "elements": case.elements,
        "ceiling_over": "one flat array" if case.flat_ceiling else "arrays of the same shapes",
        "rounds": len(next(iter(measured.seconds.values()), [])),
        "others_share_of_cpu": None if measured.others is None else round(measured.others, 3),
        "waited_s": round(measured.waited, 1),
        "agreement": {
            "agrees": agreement.agrees,
            "reference": agreement.reference,
            "steps": agreement.steps,
            "moved": float(f"{agreement.moved:.3g}"),
            "differences": {name: float(f"{value:.3g}") for name, value in agreement.differences.items()},
        },
        "contestants": {name: _contestant(measured, name) for name in measured.seconds},
        "absent": measured.absent,
    }


def _contestant(measured: Measurement, name: str) -> dict[str, Any]:
    milliseconds = quartiles([1e3 * value for value in measured.seconds[name]])
    row: dict[str, Any] = {
        "label": CONTESTANTS[name].label,
        "role": CONTESTANTS[name].role,
        "ms": milliseconds,
        "gb_per_s": float(f"{measured.case.step_bytes / milliseconds['median'] / 1e6:.4g}"),
        # How many times as long as ours it took, in the same round.
        "times_ours": {ours: quartiles(measured.ratios(name, ours)) for ours in OURS if ours in measured.seconds},
    }
    if "ceiling" in measured.seconds:
        row["share_of_ceiling"] = quartiles(measured.ratios("ceiling", name))
    row["all_ms"] = [float(f"{1e3 * value:.4g}") for value in measured.seconds[name]]
    return row


def write_json(found: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


# A comma sets the variant apart: of ours, the last part tells them apart.
_OUR_HEADINGS = [f"× {CONTESTANTS[name].label.split(', ')[-1]}" for name in OURS]
HEADINGS = ["one step of", "ms", "GB/s", "of ceiling", *_OUR_HEADINGS]


def plain(value: float) -> str:
    """Three significant digits, never in exponents."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def rows(case: dict[str, Any], spread: bool) -> list[list[str]]:
    """The table of a case, fastest first, as text; medians, and quartiles in brackets if `spread`."""

    def cell(value: dict[str, float] | None, unit: float = 1.0, suffix: str = "") -> str:
        if value is None:
            return "–"
        quartile = [plain(unit * value[name]) for name in ("median", "q1", "q3")]
        return quartile[0] + suffix + (f" ({quartile[1]} to {quartile[2]})" if spread else "")

    return [
        [
            row["label"],
            cell(row["ms"]),
            plain(row["gb_per_s"]),
            cell(row.get("share_of_ceiling"), 100.0, " %"),
            *("1" if ours == name else cell(row["times_ours"].get(ours)) for ours in OURS),
        ]
        for name, row in sorted(case["contestants"].items(), key=lambda item: item[1]["ms"]["median"])
    ]


def notes(case: dict[str, Any]) -> list[str]:
    """What has to be known to read the table of a case."""
    lines = [f"{case['rounds']} rounds; caches {case['caches']}; the ceiling ran over {case['ceiling_over']}"]
    if case["others_share_of_cpu"] is not None:
        lines[0] += f"; other processes had {100 * case['others_share_of_cpu']:.0f} % of the CPU time"
    agreement = case["agreement"]
    if agreement["reference"] is not None and agreement["differences"]:
        worst = max(agreement["differences"].values())
        lines.append(
            f"after {agreement['steps']} steps the parameters "
            f"{'agree' if agreement['agrees'] else 'DO NOT AGREE'} with {CONTESTANTS[agreement['reference']].label}: "
            f"largest difference {worst:.1e} of the largest parameter, which had moved by {agreement['moved']:.1e}"
        )
    lines += [f"{CONTESTANTS[name].label} did not run: {reason}" for name, reason in case["absent"].items()]
    return lines


def header(found: dict[str, Any]) -> list[str]:
    """Machine and versions, in lines."""
    on, by = found["machine"], found["versions"]
    levels = ", ".join(f"{level} {size}" for level, size in on["caches"].items())
    commit = (found["commit"]["hash"] or "no commit")[:12] + (" with changes" if found["commit"]["modified"] else "")
    return [
        f"{on['cpu']}, {on['cores']} cores ({levels}), {on['vector']}, {found['threads']} threads",
        f"radam_fused {by['radam_fused']} ({commit}), torch {by['torch']}, Python {by['python']}, {by['compiler']}",
        f"{found['date']}",
    ]


def markdown(found: dict[str, Any], plot: str | None = None) -> str:
    """The report as Markdown; `plot` is the name of the picture beside it."""
    lines = ["# One optimizer step", "", *(f"- {line}" for line in header(found)), ""]
    lines += [
        "Medians (and quartiles) over rounds in which the contestants take turns. GB/s counts 28 bytes an element, the",
        "least that a step can move. The last columns say how many times as long as FusedRAdam each took in the same",
        "round. `python -m bench` makes this file; `bench/measure.py` has the method.",
        "",
    ]
    if plot:
        lines += [f"![Milliseconds a step]({plot})", ""]
    for case in found["cases"]:
        lines += [f"## {case['title']}", "", "| " + " | ".join(HEADINGS) + " |"]
        lines += ["| :-- |" + " --: |" * (len(HEADINGS) - 1)]
        lines += ["| " + " | ".join(row) + " |" for row in rows(case, spread=True)]
        lines += ["", *(f"- {note}" for note in notes(case)), ""]
    lines += [f"- {name} was not measured: {reason}" for name, reason in found["skipped"].items()]
    return "\n".join(lines).rstrip() + "\n"


def show(found: dict[str, Any], console: Console) -> None:
    """The report in a terminal."""
    for case in found["cases"]:
        table = Table(title=case["title"], title_justify="left", title_style="bold", caption_justify="left")
        table.box, table.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)  # fits 80 columns
        table.caption = "\n".join(notes(case))
        for index, heading in enumerate(HEADINGS):
            table.add_column(heading, justify="left" if index == 0 else "right", no_wrap=True)
        ours = {CONTESTANTS[name].label for name in OURS}
        for row in rows(case, spread=False):
            table.add_row(*row, style="bold green" if row[0] in ours else None)
        console.print(table)
    for line in header(found):
        console.print(line, style="dim", highlight=False)
