"""The GPU suite's pictures: share of the copy's bandwidth, times as long as FusedRAdam, host time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.gpu import gpu_tables
from bench.report.document import plain
from bench.report.plot_style import INK, clean, finish, pyplot

NAMES = ("share.png", "ratios.png", "host.png")
COLOURS = {
    "cuda": "#d1495b",
    "cuda-flat": "#e8909b",
    "triton": "#edae49",
    "triton-flat": "#f5d08f",
    "radam-foreach": "#30638e",
    "radam-compiled": "#6f9bbf",
    "adamw-fused": "#8d99ae",
}
OTHER = "#b8c0cc"

Value = Callable[[dict[str, Any]], float | None]


def draw(found: dict[str, Any], folder: Path) -> None:
    """Writes `NAMES`; nothing if nothing was measured.

    Raises:
        ImportError: matplotlib is not installed.
    """
    if not found["rows"]:
        return

    def percent(row: dict[str, Any]) -> float | None:
        part = gpu_tables.share(found, row)
        return 100 * part if part else None

    def ratio(row: dict[str, Any]) -> float | None:
        fastest = gpu_tables.fastest_ours(gpu_tables.rows_of(found, row["case"], row["dtype"]), "loop_ms")
        return gpu_tables.times(row, fastest, "loop_ms") if fastest else None

    pictures: list[tuple[str, str, Value, bool]] = [
        ("share.png", "Percent of the bandwidth of a copy", percent, False),
        ("ratios.png", "Times as long as the fastest FusedRAdam, in a loop", ratio, True),
        ("host.png", "Microseconds of host time per step", lambda row: row["host_us"]["median"], True),
    ]
    for name, heading, value, logarithmic in pictures:
        _picture(found, folder / name, heading, value, logarithmic)


def _picture(found: dict[str, Any], path: Path, heading: str, value: Value, logarithmic: bool) -> None:
    """Grouped bars: one panel per dtype, one group per case, one bar per candidate."""
    dtypes = list(dict.fromkeys(row["dtype"] for row in found["rows"]))
    candidates = {row["candidate"]: row["label"] for row in found["rows"]}
    figure, panels = pyplot().subplots(
        len(dtypes), 1, figsize=(10, 0.9 + 2.7 * len(dtypes)), squeeze=False, layout="constrained"
    )
    for panel, dtype in zip(panels[:, 0], dtypes, strict=True):
        cases = [case for case in found["cases"] if gpu_tables.rows_of(found, case, dtype)]
        width = 0.85 / len(candidates)
        for place, (name, label) in enumerate(candidates.items()):
            rows = [gpu_tables.find_row(found, case, dtype, name) for case in cases]
            heights = [(value(row) if row else None) or 0.0 for row in rows]
            at = [k - 0.425 + (place + 0.5) * width for k in range(len(cases))]
            bars = panel.bar(at, heights, width, color=COLOURS.get(name, OTHER), label=label)
            texts = [plain(height) if height else "" for height in heights]
            panel.bar_label(bars, texts, fontsize=6, rotation=90, padding=2, color=INK)
        if logarithmic:
            panel.set_yscale("log")
        panel.margins(y=0.25)
        clean(panel)
        titles = [found["cases"][case]["title"].replace(", ", "\n") for case in cases]
        panel.set_xticks(range(len(cases)), titles, fontsize=8, color=INK)
        panel.set_title(dtype, loc="left", fontsize=10, color=INK)
    panels[0, 0].legend(fontsize=7, ncols=4, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    finish(figure, heading, *gpu_tables.header(found)[:2], path)
