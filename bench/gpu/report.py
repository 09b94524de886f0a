"""A GPU run in numbers: the JSON that is kept, and the tables made from it.

Everything here works on what `bench.gpu.step` wrote, and needs neither torch nor a GPU. A row's share is its pass's
bytes a second over those of the copy that was timed beside it; its ratios are its times over those of the fastest
FusedRAdam of the same case and dtype.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCHEMA = 1
HEADINGS = ["one step of", "GPU ms", "of copy", "host µs", "loop ms", "launches", "× GPU", "× loop", "right"]


def add_counts(row: dict[str, Any], counts: dict[str, Any] | None) -> None:
    """Adds what a profiler counted; its time stands in where the events could not tell the GPU's."""
    row.update(counts or {})
    if row["gpu_ms"] is None and row.get("profiled_ms"):
        row["gpu_ms"] = {"q1": row["profiled_ms"], "median": row["profiled_ms"], "q3": row["profiled_ms"], "samples": 1}
        row["gpu_ms_from"] = "profiler"


def write_json(found: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def copy_rate(found: dict[str, Any], case: str, dtype: str) -> float | None:
    """GB/s of the copies beside a case, their median, reads and writes counted."""
    rates = [
        copy["bytes"] / copy["ms"]["median"] / 1e6
        for copy in found["copies"]
        if (copy["case"], copy["dtype"]) == (case, dtype) and copy["ms"]
    ]
    return statistics.median(rates) if rates else None


def rate(row: dict[str, Any]) -> float | None:
    """GB/s of a row, at the bytes that its pass has to move."""
    return row["bytes"] / row["gpu_ms"]["median"] / 1e6 if row["gpu_ms"] else None


def share(found: dict[str, Any], row: dict[str, Any]) -> float | None:
    """Of the copy's bandwidth."""
    own, ceiling = rate(row), copy_rate(found, row["case"], row["dtype"])
    return own / ceiling if own and ceiling else None


def rows_of(found: dict[str, Any], case: str, dtype: str) -> list[dict[str, Any]]:
    return [row for row in found["rows"] if (row["case"], row["dtype"]) == (case, dtype)]


def row_of(found: dict[str, Any], case: str, dtype: str, contestant: str) -> dict[str, Any] | None:
    return next((row for row in rows_of(found, case, dtype) if row["contestant"] == contestant), None)


def times(row: dict[str, Any], ours: dict[str, Any], key: str) -> float | None:
    """How many times as long a row took as one of ours; `key` is "gpu_ms" or "loop_ms"."""
    return row[key]["median"] / ours[key]["median"] if row[key] and ours[key] else None


def _fastest(rows: Sequence[dict[str, Any]], key: str) -> dict[str, Any] | None:
    ours = [row for row in rows if row["ours"] and row[key]]
    return min(ours, key=lambda row: row[key]["median"], default=None)


def plain(value: float | None, suffix: str = "") -> str:
    """Three significant digits, never in exponents."""
    if value is None:
        return "–"
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}") + suffix


def _right(row: dict[str, Any]) -> str:
    checked = row["check"]
    if checked["right"] is None:
        return "–" if checked.get("moves", True) else "DOES NOT MOVE"
    if row["ours"]:
        return "same bits" if checked["right"] else "OTHER BITS"
    return f"to {checked['difference']:.0e}" if checked["right"] else "DIFFERS"


def table(found: dict[str, Any], case: str, dtype: str, spread: bool) -> list[list[str]]:
    """The rows of a case as text, fastest loop first; quartiles in brackets if `spread`."""

    def cell(value: dict[str, float] | None) -> str:
        if value is None:
            return "–"
        return plain(value["median"]) + (f" ({plain(value['q1'])} to {plain(value['q3'])})" if spread else "")

    rows = sorted(rows_of(found, case, dtype), key=lambda row: row["loop_ms"]["median"])
    result = []
    for row in rows:
        ratios = []
        for key in ("gpu_ms", "loop_ms"):
            fastest = _fastest(rows, key)
            ratios.append(plain(times(row, fastest, key)) if fastest else "–")
        part = share(found, row)
        gpu = cell(row["gpu_ms"]) + (" (profiler)" if row["gpu_ms_from"] == "profiler" else "")
        launches = "–" if row.get("launches") is None else f"{row['launches']:,}"
        if row.get("memcpys"):
            launches += f" + {row['memcpys']} copies"
        result.append(
            [
                row["label"],
                gpu,
                plain(part and 100 * part, " %"),
                cell(row["host_us"]),
                cell(row["loop_ms"]),
                launches,
                *ratios,
                _right(row),
            ]
        )
    return result


def title(found: dict[str, Any], case: str, dtype: str) -> str:
    ceiling = copy_rate(found, case, dtype)
    return f"{found['cases'][case]['title']}, {dtype}; copy {plain(ceiling and ceiling / 1e3, ' TB/s')}"


def wrong(found: dict[str, Any]) -> list[str]:
    """Every result that is not what it should be, and every form of ours that failed to run."""
    lines = [
        f"{row['label']}, {row['case']} {row['dtype']}: {_right(row)}"
        for row in found["rows"]
        if row["check"]["right"] is False or not row["check"].get("moves", True)
    ]
    lines += [
        f"{entry['label']}, {entry['case']} {entry['dtype']}: {entry['reason']}"
        for entry in found["missing"]
        if entry["backend"] and "failed" in entry["reason"]
    ]
    if "ended_early" in found:
        lines.append(f"the run ended early: {found['ended_early']}")
    return lines


def absences(found: dict[str, Any]) -> list[str]:
    """Who did not run, and why: a line a contestant and reason."""
    where: dict[tuple[str, str], list[str]] = {}
    for entry in found["missing"]:
        where.setdefault((entry["label"], entry["reason"]), []).append(f"{entry['case']} {entry['dtype']}")
    all_cases = {f"{copy['case']} {copy['dtype']}" for copy in found["copies"]}
    return [
        f"{label} did not run{'' if set(cases) == all_cases else ' (' + ', '.join(cases) + ')'}: {reason}"
        for (label, reason), cases in where.items()
    ]


def header(found: dict[str, Any]) -> list[str]:
    """GPU and versions, in lines."""
    gpu, by = found["gpu"], found["versions"]
    clocks = ", ".join(f"{name} {value}" for name, value in gpu["clocks"].items())
    commit = (found["commit"]["hash"] or "no commit")[:12] + (" with changes" if found["commit"]["modified"] else "")
    return [
        f"{gpu['name']}, driver {gpu['driver']}; before the run: {clocks or 'no clocks known'}",
        f"radam_fused {by['radam_fused']} ({commit}), torch {by['torch']}, Triton {by['triton']}, nvcc {by['nvcc']}, "
        f"Python {by['python']}",
        f"{found['date']}, {found.get('seconds', 0):.0f} s",
    ]


def _sections(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Every case and dtype that was measured, in the order of measuring."""
    return list(dict.fromkeys((copy["case"], copy["dtype"]) for copy in found["copies"]))


def markdown(found: dict[str, Any], claims: Sequence[str], plots: Sequence[str]) -> str:
    lines = ["# One optimizer step on a GPU", "", *(f"- {line}" for line in header(found)), ""]
    lines += [
        "Medians (and quartiles). GPU ms: between two CUDA events, everything queued ahead, nothing of it in the L2",
        "cache. Host µs: `step()` with an empty queue. Loop ms: a step of many, host and GPU side by side. Of copy:",
        "the pass's bytes (28 an element in fp32, 22 in bf16 with fp32 moments, 14 with bf16 moments) over the",
        "bandwidth of a copy that moves as many. The ratios say how many times as long as the fastest FusedRAdam a",
        "step took. Right: one more step from the timed state against the `reference` backend. `make gpu` makes this",
        "file; `bench/gpu/measure.py` has the method.",
        "",
        "## Claims",
        "",
        *(f"- {claim}" for claim in claims),
        "",
        *(f"![{name.removesuffix('.png')}]({name})" for name in plots),
        "",
    ]
    for case, dtype in _sections(found):
        lines += [f"## {title(found, case, dtype)}", "", "| " + " | ".join(HEADINGS) + " |"]
        lines += ["| :-- |" + " --: |" * (len(HEADINGS) - 1)]
        lines += ["| " + " | ".join(row) + " |" for row in table(found, case, dtype, spread=True)]
        lines += [""]
    lines += ["## Absent", "", *(f"- {line}" for line in absences(found))]
    lines += ["", *(f"**WRONG: {line}**" for line in wrong(found))]
    return "\n".join(lines).rstrip() + "\n"


def terminal(found: dict[str, Any]) -> str:
    """The tables as plain text, short enough for the end of a log."""
    lines = []
    for case, dtype in _sections(found):
        rows = [HEADINGS, *table(found, case, dtype, spread=False)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
        lines.append(title(found, case, dtype))
        for row in rows:
            first, *rest = row
            aligned = [text.rjust(width) for text, width in zip(rest, widths[1:], strict=True)]
            lines.append("  ".join([first.ljust(widths[0]), *aligned]))
    lines += absences(found)
    lines += header(found)
    return "\n".join(lines)
