"""The CPU suite's pictures: bars beside the baselines, the share of the roofline, scaling curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import keys
from bench.optimizers.candidates import BASELINE, CPU_CANDIDATES, OURS, ROOFLINE
from bench.report import roofline, scaling
from bench.report.document import plain
from bench.report.labels import label
from bench.report.plot_style import COLOURS, INK, QUIET, clean, cpu_footer, finish, pyplot

COLUMNS = 2


def draw(found: dict[str, Any], folder: Path) -> list[str]:
    """Writes the pictures for which there are results, and returns their file names."""
    pictures = {"step.png": bars, "roofline.png": roofline.draw, "scaling.png": scaling.draw}
    return [name for name, picture in pictures.items() if picture(found, folder / name)]


def bars(found: dict[str, Any], path: Path) -> bool:
    """Milliseconds per step with quartiles, one panel per case; False where no candidate ran."""
    cases = [case for case in found["cases"] if case[keys.CANDIDATES] and not case["series"]]
    if not cases:
        return False
    columns = min(COLUMNS, len(cases))
    lines = -(-len(cases) // columns)
    tallest = max(len(case[keys.CANDIDATES]) for case in cases)
    size = (7.2 * columns, 1.0 + lines * (0.24 * tallest + 0.6))
    figure, panels = pyplot().subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for panel, case in zip(panels.flat, cases, strict=False):
        _panel(panel, case)
    for panel in panels.flat[len(cases) :]:
        panel.set_visible(False)
    finish(
        figure,
        "One optimizer step, milliseconds",
        cpu_footer(found),
        "Bars: medians over rounds in which the candidates take turns; whiskers: quartiles; ×: how many times as long "
        "as the faster FusedRAdam. Bars cut off at the right are longer.",
        path,
    )
    return True


def _panel(panel: Any, case: dict[str, Any]) -> None:
    # A candidate has the same place in all panels, counted from the top; matplotlib counts from the bottom.
    names = [name for name in reversed(CPU_CANDIDATES) if name in case[keys.CANDIDATES]]
    rows = [case[keys.CANDIDATES][name] for name in names]
    ours = [row["ms"]["median"] for row in rows if row["role"] == OURS]
    longest = max(row["ms"]["median"] for row in rows)
    # If one candidate takes hundreds of times as long, the bars of the others would vanish.
    edge = min(longest, 12 * max(ours)) if ours else longest
    for place, row in enumerate(rows):
        ms, roofline = row["ms"], row["role"] == ROOFLINE
        low, middle, high = (min(ms[name], edge) for name in ("q1", "median", "q3"))
        panel.barh(
            place,
            middle,
            height=0.7,
            color=COLOURS[row["role"]],
            edgecolor=QUIET if roofline else "none",
            hatch="////" if roofline else None,
            linewidth=0.8,
            xerr=[[middle - low], [high - middle]],
            error_kw={"ecolor": INK, "elinewidth": 0.9, "capsize": 2},
        )
        panel.annotate(
            _caption(row),
            (high, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=INK,
        )
    panel.set_xlim(0, 1.3 * edge)
    panel.set_title(case["title"], loc="left", fontsize=10, color=INK)
    clean(panel, "left")
    panel.set_yticks(
        range(len(rows)), [label(name, row) for name, row in zip(names, rows, strict=True)], fontsize=8, color=INK
    )
    panel.tick_params(axis="y", length=0)
    for tick, row in zip(panel.get_yticklabels(), rows, strict=True):
        tick.set_fontweight("bold" if row["role"] == OURS else "normal")


def _caption(row: dict[str, Any]) -> str:
    """The text at the end of a bar: its time, and its ratio to ours or to the roofline."""
    text = f"{plain(row['ms']['median'])} ms"
    if row["role"] == BASELINE and row["times_ours"]:
        return f"{text}  ·  {plain(max(ratio['median'] for ratio in row['times_ours'].values()))} ×"
    if row["role"] == OURS and "share_of_floor" in row:
        return f"{text}  ·  roofline {100 * row['share_of_floor']['median']:.0f} %"
    return text
