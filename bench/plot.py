"""The results as a picture: one panel a case, one bar a contestant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.peers import CONTESTANTS
from bench.report import plain

# Everybody's colour by role; the ceiling is not a contestant to be beaten, and is hatched.
COLOURS = {"ours": "#d1495b", "peer": "#8d99ae", "ceiling": "#ffffff"}
INK = "#22262e"
QUIET = "#6c757d"


def draw(found: dict[str, Any], path: Path) -> None:
    """Writes bars of milliseconds a step, with quartiles, as PNG; nothing where nobody took part."""
    import matplotlib  # here, because it takes a second to import

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cases = [case for case in found["cases"] if case["contestants"]]
    if not cases:
        return
    bars = [len(case["contestants"]) for case in cases]
    figure, panels = plt.subplots(
        len(cases),
        1,
        figsize=(8.5, 1.2 + sum(0.3 * count + 0.7 for count in bars)),
        height_ratios=bars,
        squeeze=False,
        layout="constrained",
    )
    figure.suptitle("One optimizer step, milliseconds", x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    for panel, case in zip(panels[:, 0], cases, strict=True):
        _panel(panel, case)
    on = found["machine"]
    figure.supxlabel(
        f"{on['cpu']}, {found['threads']} threads, torch {found['versions']['torch']}, fp32.\n"
        "Bars: medians over rounds in which the contestants take turns; "
        "whiskers: quartiles; ×: how many times as long as the faster FusedRAdam.",
        x=0.01,
        ha="left",
        fontsize=7.5,
        color=QUIET,
    )
    figure.get_layout_engine().set(hspace=0.06)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def _panel(panel: Any, case: dict[str, Any]) -> None:
    # Everybody's place is the same in all panels, from the top; matplotlib counts upwards.
    rows = [case["contestants"][name] for name in reversed(CONTESTANTS) if name in case["contestants"]]
    widest = max(row["ms"]["q3"] for row in rows)
    for place, row in enumerate(rows):
        ms, ceiling = row["ms"], row["role"] == "ceiling"
        panel.barh(
            place,
            ms["median"],
            height=0.7,
            color=COLOURS[row["role"]],
            edgecolor=QUIET if ceiling else "none",
            hatch="////" if ceiling else None,
            linewidth=0.8,
            xerr=[[ms["median"] - ms["q1"]], [ms["q3"] - ms["median"]]],
            error_kw={"ecolor": INK, "elinewidth": 0.9, "capsize": 2},
        )
        panel.annotate(
            _caption(row),
            (ms["q3"], place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=INK,
        )
    panel.set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=9, color=INK)
    for label, row in zip(panel.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row["role"] == "ours" else "normal")
    panel.set_xlim(0, 1.25 * widest)
    panel.set_title(case["title"], loc="left", fontsize=10, color=INK)
    panel.tick_params(axis="x", labelsize=8, colors=QUIET)
    panel.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.spines["bottom"].set_color(QUIET)


def _caption(row: dict[str, Any]) -> str:
    """The number at the end of a bar: its time, and where it stands."""
    text = f"{plain(row['ms']['median'])} ms"
    if row["role"] == "peer" and row["times_ours"]:
        return f"{text}  ·  {plain(max(ratio['median'] for ratio in row['times_ours'].values()))} ×"
    if row["role"] == "ours" and "share_of_ceiling" in row:
        return f"{text}  ·  {100 * row['share_of_ceiling']['median']:.0f} % of the ceiling"
    return text
