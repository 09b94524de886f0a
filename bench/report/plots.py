"""The results as pictures: bars against the peers, the share of the floor, growth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.optimizers.candidates import CONTESTANTS
from bench.report import roofline, scaling
from bench.report.plot_style import COLOURS, INK, QUIET, clean, finish, pyplot
from bench.report.tables import plain

COLUMNS = 2


def draw(found: dict[str, Any], folder: Path) -> list[str]:
    """Writes the pictures that there is something for, and returns their names."""
    pictures = {"step.png": bars, "roofline.png": roofline.draw, "growth.png": scaling.draw}
    return [name for name, picture in pictures.items() if picture(found, folder / name)]


def bars(found: dict[str, Any], path: Path) -> bool:
    """Milliseconds a step with quartiles, a panel a case; False where nobody took part."""
    cases = [case for case in found["cases"] if case["contestants"] and not case["series"]]
    if not cases:
        return False
    columns = min(COLUMNS, len(cases))
    lines = -(-len(cases) // columns)
    tallest = max(len(case["contestants"]) for case in cases)
    size = (7.2 * columns, 1.0 + lines * (0.24 * tallest + 0.6))
    figure, panels = pyplot().subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for panel, case in zip(panels.flat, cases, strict=False):
        _panel(panel, case)
    for panel in panels.flat[len(cases) :]:
        panel.set_visible(False)
    finish(
        figure,
        "One optimizer step, milliseconds",
        found,
        "Bars: medians over rounds in which the contestants take turns; whiskers: quartiles; ×: how many times as long "
        "as the faster FusedRAdam. Bars cut off at the right are longer.",
        path,
    )
    return True


def _panel(panel: Any, case: dict[str, Any]) -> None:
    # Everybody's place is the same in all panels, from the top; matplotlib counts upwards.
    rows = [case["contestants"][name] for name in reversed(CONTESTANTS) if name in case["contestants"]]
    ours = [row["ms"]["median"] for row in rows if row["role"] == "ours"]
    longest = max(row["ms"]["median"] for row in rows)
    # Where one takes hundreds of times as long, the others would be a line.
    edge = min(longest, 12 * max(ours)) if ours else longest
    for place, row in enumerate(rows):
        ms, ceiling = row["ms"], row["role"] == "ceiling"
        low, middle, high = (min(ms[name], edge) for name in ("q1", "median", "q3"))
        panel.barh(
            place,
            middle,
            height=0.7,
            color=COLOURS[row["role"]],
            edgecolor=QUIET if ceiling else "none",
            hatch="////" if ceiling else None,
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
    panel.set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=8, color=INK)
    panel.tick_params(axis="y", length=0)
    for label, row in zip(panel.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row["role"] == "ours" else "normal")


def _caption(row: dict[str, Any]) -> str:
    """The number at the end of a bar: its time, and where it stands."""
    text = f"{plain(row['ms']['median'])} ms"
    if row["role"] == "peer" and row["times_ours"]:
        return f"{text}  ·  {plain(max(ratio['median'] for ratio in row['times_ours'].values()))} ×"
    if row["role"] == "ours" and "share_of_floor" in row:
        return f"{text}  ·  floor {100 * row['share_of_floor']['median']:.0f} %"
    return text
