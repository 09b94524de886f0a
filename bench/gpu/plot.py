"""The results as pictures: share of the copy's bandwidth, times as long as FusedRAdam, host time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.gpu import report

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
INK = "#22262e"
QUIET = "#6c757d"

Value = Callable[[dict[str, Any]], float | None]


def _fastest_ours(found: dict[str, Any], row: dict[str, Any]) -> float | None:
    """How many times as long in a loop as the fastest FusedRAdam."""
    rows = report.rows_of(found, row["case"], row["dtype"])
    ours = [other["loop_ms"]["median"] for other in rows if other["ours"]]
    return row["loop_ms"]["median"] / min(ours) if ours else None


def draw(found: dict[str, Any], folder: Path) -> None:
    """Writes `NAMES`; nothing where nothing was measured.

    Raises:
        ImportError: there is no matplotlib.
    """
    import matplotlib  # here, because it takes a second to import

    matplotlib.use("Agg")
    if not found["rows"]:
        return

    def percent(row: dict[str, Any]) -> float | None:
        part = report.share(found, row)
        return 100 * part if part else None

    pictures: list[tuple[str, str, Value, bool]] = [
        ("share.png", "Percent of the bandwidth of a copy", percent, False),
        (
            "ratios.png",
            "Times as long as the fastest FusedRAdam, in a loop",
            lambda row: _fastest_ours(found, row),
            True,
        ),
        ("host.png", "Microseconds of host time a step", lambda row: row["host_us"]["median"], True),
    ]
    for name, heading, value, logarithmic in pictures:
        _picture(found, folder / name, heading, value, logarithmic)


def _picture(found: dict[str, Any], path: Path, heading: str, value: Value, logarithmic: bool) -> None:
    """Groups of bars, one group a case, one panel a dtype."""
    from matplotlib import pyplot as plt

    dtypes = list(dict.fromkeys(row["dtype"] for row in found["rows"]))
    contestants = {row["contestant"]: row["label"] for row in found["rows"]}
    figure, panels = plt.subplots(
        len(dtypes), 1, figsize=(10, 0.9 + 2.7 * len(dtypes)), squeeze=False, layout="constrained"
    )
    figure.suptitle(heading, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    for panel, dtype in zip(panels[:, 0], dtypes, strict=True):
        cases = [case for case in found["cases"] if report.rows_of(found, case, dtype)]
        width = 0.85 / len(contestants)
        for place, (name, label) in enumerate(contestants.items()):
            rows = [report.row_of(found, case, dtype, name) for case in cases]
            heights = [(value(row) if row else None) or 0.0 for row in rows]
            at = [k - 0.425 + (place + 0.5) * width for k in range(len(cases))]
            bars = panel.bar(at, heights, width, color=COLOURS.get(name, OTHER), label=label)
            texts = [report.plain(height) if height else "" for height in heights]
            panel.bar_label(bars, texts, fontsize=6, rotation=90, padding=2, color=INK)
        if logarithmic:
            panel.set_yscale("log")
        panel.margins(y=0.25)
        titles = [found["cases"][case]["title"].replace(", ", "\n") for case in cases]
        panel.set_xticks(range(len(cases)), titles, fontsize=8, color=INK)
        panel.set_title(dtype, loc="left", fontsize=10, color=INK)
        panel.tick_params(axis="y", labelsize=8, colors=QUIET)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    panels[0, 0].legend(fontsize=7, ncols=4, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    figure.supxlabel(" · ".join(report.header(found)[:2]), x=0.01, ha="left", fontsize=6.5, color=QUIET)
    figure.savefig(path, dpi=150)
    plt.close(figure)
