"""The picture of scaling: more tensors for the same elements, and more elements in as many tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import keys
from bench.report.labels import labels
from bench.report.plot_style import INK, OURS, clean, cpu_footer, finish, looks, pyplot

AXES = {
    "tensors": ("tensors", "640,000 elements in more tensors"),
    "elements": ("elements", "100 tensors of more elements"),
}


def draw(found: dict[str, Any], path: Path) -> bool:
    """One panel per series and one curve per candidate; False where no series has two points."""
    curves = {name: [case for case in found["cases"] if case["series"] == name] for name in AXES}
    curves = {name: cases for name, cases in curves.items() if len(cases) > 1}
    if not curves:
        return False
    size = (6.0 * len(curves) + 2, 5.0)
    figure, panels = pyplot().subplots(1, len(curves), figsize=size, squeeze=False, layout="constrained")
    every = labels([case for cases in curves.values() for case in cases])
    style = {**looks([name for name in every if name != keys.ROOFLINE]), keys.ROOFLINE: (INK, "")}
    for panel, (series, cases) in zip(panels.flat, curves.items(), strict=True):
        axis, title = AXES[series]
        for name, label in every.items():
            there = [case for case in cases if name in case[keys.CANDIDATES]]
            times = [case[keys.CANDIDATES][name]["ms"]["median"] for case in there]
            colour, marker = style[name]
            panel.plot(
                [case[axis] for case in there],
                times,
                color=colour,
                marker=marker,
                markersize=4,
                linewidth=2.4 if name in OURS else 1.1,
                linestyle="--" if name == keys.ROOFLINE else "-",
                label=label,
            )
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel(axis, fontsize=9, color=INK)
        panel.set_ylabel("ms per step", fontsize=9, color=INK)
        panel.set_title(title, loc="left", fontsize=10, color=INK)
        clean(panel)
    panels.flat[-1].legend(fontsize=7.5, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    finish(figure, "Scaling", cpu_footer(found), "Medians over rounds in which the candidates take turns.", path, found)
    return True
