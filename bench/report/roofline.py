"""The share of the floor: how near everybody comes to the time that the bytes alone would take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.report.plot_style import INK, OURS, QUIET, clean, finish, labels, looks, pyplot


def draw(found: dict[str, Any], path: Path) -> bool:
    """A line a case and a point a contestant, on a logarithmic axis; False where there was no ceiling."""
    cases = [case for case in found["cases"] if not case["series"] and "ceiling" in case["contestants"]]
    if not cases:
        return False
    names = {name: label for name, label in labels(found, cases).items() if name != "ceiling"}
    figure, panel = pyplot().subplots(figsize=(10, 1.9 + 0.42 * len(cases)), layout="constrained")
    for name, (colour, marker) in looks(list(names)).items():
        points = [
            (100 * case["contestants"][name]["share_of_floor"]["median"], -place)
            for place, case in enumerate(cases)
            if name in case["contestants"] and "share_of_floor" in case["contestants"][name]
        ]
        if points:
            front, size = (3, 75) if name in OURS else (2, 32)
            panel.scatter(*zip(*points, strict=True), c=colour, marker=marker, s=size, zorder=front, label=names[name])
    panel.set_xscale("log")
    panel.axvline(100, color=INK, linewidth=1)
    panel.axvline(90, color=QUIET, linewidth=0.8, linestyle=":")
    panel.set_yticks([-place for place in range(len(cases))], [case["title"] for case in cases])
    panel.set_ylim(0.6 - len(cases), 0.6)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    panel.grid(axis="y", color="#e9ecef")
    clean(panel, "left")
    panel.tick_params(axis="y", length=0, labelsize=9, colors=INK)
    panel.legend(fontsize=7.5, frameon=False, ncols=1, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    footer = (
        "100 %: the time of the bytes that a step has to move (28 an element, fewer with 8-bit moments) at the "
        "bandwidth of the ceiling in the same rounds. Medians."
    )
    finish(figure, "Share of the floor", found, footer, path)
    return True
