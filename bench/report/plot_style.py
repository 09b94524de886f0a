"""What the pictures have in common: colours, a title, a footer."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

INK = "#22262e"
QUIET = "#6c757d"
# By role; the ceiling is not a contestant to be beaten, and is hatched.
COLOURS = {"ours": "#d1495b", "peer": "#8d99ae", "ceiling": "#ffffff"}
# Lines and points need telling apart where bars have names beside them.
OURS = {"fused-flat": "#d1495b", "fused": "#e9949f"}
PEERS = ("#30638e", "#edae49", "#00798c", "#7b5ea7", "#6a994e", "#bc6c25", "#457b9d", "#9a8c98", "#2a9d8f", "#c9ada7")
MARKERS = "osD^v<>PX*ph"


def pyplot() -> Any:
    """matplotlib's, without a display; imported late, because it takes a second."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def looks(names: list[str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each contestant, the same for the same list."""
    peers = [name for name in names if name not in OURS]
    found = {name: (colour, "o") for name, colour in OURS.items()}
    for place, name in enumerate(peers):
        found[name] = (PEERS[place % len(PEERS)], MARKERS[1 + place % (len(MARKERS) - 1)])
    return found


def labels(found: dict[str, Any], cases: list[dict[str, Any]]) -> dict[str, str]:
    """The contestants of these cases, with their labels."""
    return {name: row["label"] for case in cases for name, row in case["contestants"].items()}


def clean(panel: Any, *sides: str) -> None:
    """Without the frame's sides that say nothing."""
    for side in ("top", "right", *sides):
        panel.spines[side].set_visible(False)
    panel.spines["bottom"].set_color(QUIET)
    panel.tick_params(labelsize=8, colors=QUIET)


def finish(figure: Any, title: str, found: dict[str, Any], footer: str, path: Path) -> None:
    """Title, footer, file."""
    on = found["machine"]
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    machine = f"{on['cpu']}, {found['threads']} threads, torch {found['versions']['torch']}, fp32."
    wide = int(17 * figure.get_size_inches()[0])  # characters of the footer's size
    figure.supxlabel("\n".join([machine, *textwrap.wrap(footer, wide)]), x=0.01, ha="left", fontsize=7.5, color=QUIET)
    figure.savefig(path, dpi=150)
    pyplot().close(figure)
