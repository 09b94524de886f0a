"""The tables of docs/performance.md that show what nvcc makes of the CUDA kernels, from ``make cuda-check SAVE=1``."""

from __future__ import annotations

from typing import Any

from bench.report.document import DASH, markdown_table

MAIN = {90: ("H100", "H200"), 100: ("B200",)}
"""Architectures with a table of their own, and the GPUs of each."""
NOTHING = "No machine code has been read yet; `make cuda-check SAVE=1` does that where there is nvcc."

Row = dict[str, Any]


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.1f}"


def _total(row: Row) -> str:
    """Instructions of an element, with those of a tile's look-up."""
    return _number(None if row["instructions"] is None else row["instructions"] + row["per_tile"])


def _of(rows: list[Row], arch: int, gpus: tuple[str, ...]) -> list[str]:
    headings = [
        f"sm_{arch}",
        "registers",
        "blocks",
        "threads",
        "KB in flight",
        "instructions",
        "with look-ups",
        *(f"{gpu}, %" for gpu in gpus),
    ]
    cells = [
        [
            row["kernel"],
            str(row["registers"]),
            str(row["blocks"]),
            str(128 * row["blocks"]),
            f"{row['in_flight'] / 1024:.0f}",
            _number(row["instructions"]),
            _total(row),
            *(f"{100 * row['shares'][gpu]:.0f}" if gpu in row["shares"] else DASH for gpu in gpus),
        ]
        for row in rows
        if row["arch"] == arch
    ]
    return markdown_table(headings, cells)


def tables(found: dict[str, Any]) -> list[str]:
    """Registers to shares for `MAIN`, and one table with registers and instructions for all other architectures."""
    rows = found["rows"]
    others = sorted({row["arch"] for row in rows} - {*MAIN})
    by_kernel: dict[str, dict[int, Row]] = {}
    for row in rows:
        by_kernel.setdefault(row["kernel"], {})[row["arch"]] = row

    def cell(row: Row | None) -> str:
        return DASH if row is None else f"{row['registers']}; {_total(row)}"

    gpus = "; ".join(
        f"{name}: {gpu['multiprocessors']} multiprocessors, {gpu['clock'] / 1e9:g} GHz, {gpu['copy'] / 1e12:g} TB/s"
        for name, gpu in found["gpus"].items()
    )
    spills = sum(row["spills"] for row in rows if not row["kernel"].startswith("torch"))
    torch = f"torch {found['torch']}" if found["torch"] else "no CUDA build of torch was installed"
    return [
        "By `make cuda-check SAVE=1` and `make readme` ([raw](bench/results/cuda/machine_code.json)):",
        f"nvcc {found['nvcc']}, {torch}; {spills} accesses to local memory in all kernels of this package. Blocks of",
        "128 threads and KB of loads in flight are of a multiprocessor, instructions of an element. The share is of",
        "the issue rate while a copy's bandwidth is reached; above 100 a kernel is bound by instructions.",
        f"{gpus}.",
        "",
        *(line for arch, names in MAIN.items() for line in [*_of(rows, arch, names), ""]),
        "Registers and instructions with look-ups on the others:",
        "",
        *markdown_table(
            ["kernel", *(f"sm_{arch}" for arch in others)],
            [[kernel, *(cell(on.get(arch)) for arch in others)] for kernel, on in by_kernel.items()],
        ),
    ]
