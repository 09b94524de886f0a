"""Pictures of milliseconds per step: one panel per case, a point per candidate on a logarithmic axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import keys
from bench.optimizers.candidates import BASELINE, CPU_CANDIDATES, OURS
from bench.report.document import plain
from bench.report.labels import label
from bench.report.plot_style import COLOURS, INK, QUIET, clean, cpu_footer, finish, pyplot

COLUMNS = 2
SHORT_CASES = {"gpt2": "GPT-2 124M, 148 tensors", "small": "10,000 tensors of 64 elements"}
SHORT_CANDIDATES = (
    keys.ROOFLINE,
    "fused-flat",
    "fused",
    "adamw-fused",
    "adam-fused",
    "radam-foreach",
    "radam-single",
    "optimi",
)
"""What the README's picture has: this optimizer, torch's own, another RAdam with a kernel of its own, the roofline."""


def draw(found: dict[str, Any], path: Path) -> bool:
    """All cases and candidates; False where no candidate ran."""
    cases = [case for case in found["cases"] if case[keys.CANDIDATES] and not case["series"]]
    return _draw(found, cases, path, "One optimizer step, milliseconds")


def draw_short(found: dict[str, Any], path: Path) -> bool:
    """The README's: one row of panels, `SHORT_CASES`, with `SHORT_CANDIDATES`; False where none of these ran."""
    cases = []
    for case in found["cases"]:
        candidates = {name: row for name, row in case[keys.CANDIDATES].items() if name in SHORT_CANDIDATES}
        if case["name"] in SHORT_CASES and candidates:
            cases.append({**case, "title": SHORT_CASES[case["name"]], keys.CANDIDATES: candidates})
    return _draw(found, cases, path, "One optimizer step, milliseconds: less is better")


def _draw(found: dict[str, Any], cases: list[dict[str, Any]], path: Path, title: str) -> bool:
    if not cases:
        return False
    columns = min(COLUMNS, len(cases))
    lines = -(-len(cases) // columns)
    tallest = max(len(case[keys.CANDIDATES]) for case in cases)
    size = (6.2 * columns, 0.9 + lines * (0.22 * tallest + 0.75))
    figure, panels = pyplot().subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for panel, case in zip(panels.flat, cases, strict=False):
        _panel(panel, case)
    for panel in panels.flat[len(cases) :]:
        panel.set_visible(False)
    footer = (
        "Points: medians over rounds in which the candidates take turns; lines: quartiles; ×: how many times as long "
        "as the faster FusedRAdam. Dashed: the roofline, a loop over the same arrays that only adds."
    )
    finish(figure, title, cpu_footer(found), footer, path, found)
    return True


def _panel(panel: Any, case: dict[str, Any]) -> None:
    # A candidate has the same place in all panels, counted from the top; matplotlib counts from the bottom.
    names = [name for name in reversed(CPU_CANDIDATES) if name in case[keys.CANDIDATES] and name != keys.ROOFLINE]
    rows = [case[keys.CANDIDATES][name] for name in names]
    for place, row in enumerate(rows):
        ms = row["ms"]
        panel.errorbar(
            ms["median"],
            place,
            xerr=[[ms["median"] - ms["q1"]], [ms["q3"] - ms["median"]]],
            fmt="o",
            markersize=7 if row["role"] == OURS else 5,
            color=COLOURS[row["role"]],
            ecolor=INK,
            elinewidth=0.9,
            capsize=2,
        )
        panel.annotate(
            _caption(row),
            (ms["q3"], place),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=INK,
        )
    _axis(panel, case, rows)
    panel.set_title(_title(case), loc="left", fontsize=9.5, color=INK)
    panel.set_yticks(
        range(len(rows)), [label(name, row) for name, row in zip(names, rows, strict=True)], fontsize=8, color=INK
    )
    for tick, row in zip(panel.get_yticklabels(), rows, strict=True):
        tick.set_fontweight("bold" if row["role"] == OURS else "normal")


def _title(case: dict[str, Any]) -> str:
    roofline = case[keys.CANDIDATES].get(keys.ROOFLINE)
    return case["title"] + (f" (dashed: {plain(roofline['ms']['median'])} ms)" if roofline else "")


def _axis(panel: Any, case: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """A logarithmic axis with room for the captions, and the roofline."""
    roofline = case[keys.CANDIDATES].get(keys.ROOFLINE)
    medians = [row["ms"]["median"] for row in [*rows, *([roofline] if roofline else [])]]
    panel.set_xscale("log")
    panel.set_xlim(min(medians) / 1.6, max(medians) * (max(medians) / min(medians)) ** 0.45 * 1.6)
    panel.set_ylim(-0.6, len(rows) - 0.4)
    panel.set_xlabel("ms per step, logarithmic", fontsize=8, color=INK)
    panel.grid(axis="x", color="#e9ecef")
    panel.set_axisbelow(True)
    clean(panel, "left")
    panel.tick_params(axis="y", length=0)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    if roofline:
        panel.axvline(roofline["ms"]["median"], color=QUIET, linewidth=1, linestyle="--", zorder=0)


def _caption(row: dict[str, Any]) -> str:
    """The text beside a point: its time, and its ratio to ours or to the roofline."""
    text = f"{plain(row['ms']['median'])} ms"
    if row["role"] == BASELINE and row["times_ours"]:
        return f"{text}  ·  {plain(max(ratio['median'] for ratio in row['times_ours'].values()))} ×"
    if row["role"] == OURS and "share_of_floor" in row:
        return f"{text}  ·  {100 * row['share_of_floor']['median']:.0f} % of the roofline"
    return text
