"""The GPU suite's tables, made from the JSON that `bench.gpu.step` writes; needs neither torch nor a GPU.

A row's share is the bandwidth of its step divided by that of the copy that was timed beside it. Its ratios are its
times divided by those of the fastest FusedRAdam of the same case and dtype.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from bench.report.document import DASH, Document, Section, cell, commit, plain

SCHEMA = 1
HEADINGS = ["one step of", "GPU ms", "of copy", "host µs", "loop ms", "launches", "× GPU", "× loop", "right"]
METHOD = (
    "Medians (and quartiles). GPU ms: between two CUDA events, everything queued ahead, nothing of it in the L2",
    "cache. Host µs: `step()` with an empty queue. Loop ms: one step of many, host and GPU side by side. Of copy: the",
    "bytes of a step (28 per element in fp32, 22 in bf16 with fp32 moments, 14 with bf16 moments) divided by the time,",
    "as a share of the bandwidth of a copy that moves as many. Ratios are to the time of the fastest FusedRAdam.",
    "Right: one more step from the timed state against the `reference` backend. `make gpu` makes this file;",
    "`bench/gpu/timing.py` describes the method.",
)


def add_counts(row: dict[str, Any], counts: dict[str, Any] | None) -> None:
    """Adds what the profiler counted; its time stands in where events could not measure the GPU's."""
    row.update(counts or {})
    if row["gpu_ms"] is None and row.get("profiled_ms"):
        row["gpu_ms"] = {"q1": row["profiled_ms"], "median": row["profiled_ms"], "q3": row["profiled_ms"], "samples": 1}
        row["gpu_ms_from"] = "profiler"


def copy_rate(found: dict[str, Any], case: str, dtype: str) -> float | None:
    """The median bandwidth of the copies beside a case, in GB/s; reads and writes both count."""
    rates = [
        copy["bytes"] / copy["ms"]["median"] / 1e6
        for copy in found["copies"]
        if (copy["case"], copy["dtype"]) == (case, dtype) and copy["ms"]
    ]
    return statistics.median(rates) if rates else None


def rate(row: dict[str, Any]) -> float | None:
    """A row's bandwidth in GB/s, for the bytes that its step moves at least."""
    return row["bytes"] / row["gpu_ms"]["median"] / 1e6 if row["gpu_ms"] else None


def share(found: dict[str, Any], row: dict[str, Any]) -> float | None:
    """A row's bandwidth divided by the copy's."""
    own, copy = rate(row), copy_rate(found, row["case"], row["dtype"])
    return own / copy if own and copy else None


def rows_of(found: dict[str, Any], case: str, dtype: str) -> list[dict[str, Any]]:
    return [row for row in found["rows"] if (row["case"], row["dtype"]) == (case, dtype)]


def find_row(found: dict[str, Any], case: str, dtype: str, candidate: str) -> dict[str, Any] | None:
    return next((row for row in rows_of(found, case, dtype) if row["candidate"] == candidate), None)


def times(row: dict[str, Any], ours: dict[str, Any], key: str) -> float | None:
    """A row's time divided by that of one of ours; `key` is "gpu_ms" or "loop_ms"."""
    return row[key]["median"] / ours[key]["median"] if row[key] and ours[key] else None


def fastest_ours(rows: Sequence[dict[str, Any]], key: str) -> dict[str, Any] | None:
    """The fastest FusedRAdam among these rows."""
    ours = [row for row in rows if row["ours"] and row[key]]
    return min(ours, key=lambda row: row[key]["median"], default=None)


def _right(row: dict[str, Any]) -> str:
    checked = row["check"]
    if checked["right"] is None:
        return DASH if checked.get("moves", True) else "DOES NOT MOVE"
    if row["ours"]:
        return "same bits" if checked["right"] else "OTHER BITS"
    return f"to {checked['difference']:.0e}" if checked["right"] else "DIFFERS"


def table(found: dict[str, Any], case: str, dtype: str, spread: bool) -> list[list[str]]:
    """The rows of a case as text, fastest loop first, with quartiles if `spread`."""
    rows = sorted(rows_of(found, case, dtype), key=lambda row: row["loop_ms"]["median"])
    result = []
    for row in rows:
        ratios = []
        for key in ("gpu_ms", "loop_ms"):
            fastest = fastest_ours(rows, key)
            ratios.append(plain(times(row, fastest, key)) if fastest else DASH)
        part = share(found, row)
        launches = DASH if row.get("launches") is None else f"{row['launches']:,}"
        if row.get("memcpys"):
            launches += f" + {row['memcpys']} copies"
        result.append(
            [
                row["label"],
                cell(row["gpu_ms"], spread) + (" (profiler)" if row["gpu_ms_from"] == "profiler" else ""),
                plain(part and 100 * part, " %"),
                cell(row["host_us"], spread),
                cell(row["loop_ms"], spread),
                launches,
                *ratios,
                _right(row),
            ]
        )
    return result


def wrong(found: dict[str, Any]) -> list[str]:
    """Every result that is not right, and every FusedRAdam that failed to run."""
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


def skipped_lines(found: dict[str, Any]) -> list[str]:
    """The candidates that did not run: one line per candidate and reason."""
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
    return [
        f"{gpu['name']}, driver {gpu['driver']}; before the run: {clocks or 'clocks unknown'}",
        f"radam_fused {by['radam_fused']} ({commit(found)}), torch {by['torch']}, Triton {by['triton']}, "
        f"nvcc {by['nvcc']}, Python {by['python']}",
        f"{found['date']}, {found.get('seconds', 0):.0f} s",
    ]


def document(found: dict[str, Any], targets: Sequence[str] = (), plots: Sequence[str] = ()) -> Document:
    """The report of a run: one section per case and dtype, in the order of measuring."""
    sections = []
    for case, dtype in dict.fromkeys((copy["case"], copy["dtype"]) for copy in found["copies"]):
        copy = copy_rate(found, case, dtype)
        title = f"{found['cases'][case]['title']}, {dtype}; copy {plain(copy and copy / 1e3, ' TB/s')}"
        brief, full = (table(found, case, dtype, spread) for spread in (False, True))
        sections.append(Section(title, HEADINGS, brief, full))
    notes = [*skipped_lines(found), *(f"**WRONG: {line}**" for line in wrong(found))]
    return Document("One optimizer step on a GPU", header(found), METHOD, targets, sections, plots, notes)
