"""The picture of each candidate's share of the bandwidth roofline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import keys
from bench.report.labels import labels
from bench.report.plot_style import INK, OURS, QUIET, clean, cpu_footer, finish, looks, pyplot


def draw(found: dict[str, Any], path: Path) -> bool:
    """One line per case and one point per candidate, on a logarithmic axis; False where no roofline was measured."""
    cases = [case for case in found["cases"] if not case["series"] and keys.ROOFLINE in case[keys.CANDIDATES]]
    if not cases:
        return False
    names = {name: label for name, label in labels(cases).items() if name != keys.ROOFLINE}
    figure, panel = pyplot().subplots(figsize=(10, 1.9 + 0.42 * len(cases)), layout="constrained")
    for name, (colour, marker) in looks(list(names)).items():
        points = [
            (100 * case[keys.CANDIDATES][name]["share_of_floor"]["median"], -place)
            for place, case in enumerate(cases)
            if name in case[keys.CANDIDATES] and "share_of_floor" in case[keys.CANDIDATES][name]
        ]
        if points:
            front, size = (3, 75) if name in OURS else (2, 32)
            panel.scatter(*zip(*points, strict=True), c=colour, marker=marker, s=size, zorder=front, label=names[name])
    panel.set_xscale("log")
    panel.axvline(100, color=INK, linewidth=1)
    panel.axvline(90, color=QUIET, linewidth=0.8, linestyle=":")
    panel.set_yticks([-place for place in range(len(cases))], [case["title"] for case in cases])
    panel.set_ylim(0.6 - len(cases), 0.6)
    panel.set_xlabel("share of the roofline's bandwidth, logarithmic; dotted: 90 %", fontsize=8, color=INK)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    panel.grid(axis="y", color="#e9ecef")
    clean(panel, "left")
    panel.tick_params(axis="y", length=0, labelsize=9, colors=INK)
    panel.legend(fontsize=7.5, frameon=False, ncols=1, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    footer = (
        "100 %: the time of the bytes that a step moves at least (28 per element, fewer with 8-bit moments) at the "
        "bandwidth of the roofline in the same rounds. Medians."
    )
    finish(figure, "Share of the bandwidth roofline", cpu_footer(found), footer, path, found)
    return True
