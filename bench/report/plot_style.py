"""The style of all pictures: colours, title, footer."""

from __future__ import annotations

import hashlib
import json
import textwrap
from pathlib import Path
from typing import Any

from bench import keys

INK = "#22262e"
QUIET = "#6c757d"
# By role.
COLOURS = {"ours": "#d1495b", keys.BASELINE: "#8d99ae"}
# Lines and points need different colours, as they have no name beside them.
OURS = {"fused-flat": "#d1495b", "fused": "#e9949f"}
BASELINES = (
    "#30638e",
    "#edae49",
    "#00798c",
    "#7b5ea7",
    "#6a994e",
    "#bc6c25",
    "#457b9d",
    "#9a8c98",
    "#2a9d8f",
    "#c9ada7",
)
MARKERS = "osD^v<>PX*ph"


def pyplot() -> Any:
    """matplotlib's, without a display; imported late because that takes a second."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def looks(names: list[str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker per candidate; the same for the same list."""
    baselines = [name for name in names if name not in OURS]
    found = {name: (colour, "o") for name, colour in OURS.items()}
    for place, name in enumerate(baselines):
        found[name] = (BASELINES[place % len(BASELINES)], MARKERS[1 + place % (len(MARKERS) - 1)])
    return found


def clean(panel: Any, *sides: str) -> None:
    """Removes the frame's sides that carry no axis."""
    for side in ("top", "right", *sides):
        panel.spines[side].set_visible(False)
    panel.spines["bottom"].set_color(QUIET)
    panel.tick_params(labelsize=8, colors=QUIET)


def cpu_footer(found: dict[str, Any]) -> str:
    """The machine of a CPU run."""
    on = found["machine"]
    return f"{on['cpu']}, {found['threads']} threads, torch {found['versions']['torch']}, fp32."


def digest(found: dict[str, Any]) -> str:
    """Which results a picture shows."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(found)), sort_keys=True).encode()).hexdigest()


def finish(figure: Any, title: str, machine: str, footer: str, path: Path, found: dict[str, Any] | None = None) -> None:
    """Adds the title and the footer, of which the machine is the first line, and writes the file.

    The file's text has the `digest` of the results, so that a test finds a picture of earlier ones.
    """
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    wide = int(17 * figure.get_size_inches()[0])  # characters of the footer's size
    figure.supxlabel("\n".join([machine, *textwrap.wrap(footer, wide)]), x=0.01, ha="left", fontsize=7.5, color=QUIET)
    text = {"Software": None, "Source": digest(found)} if found else {"Software": None}
    figure.savefig(path, dpi=150, metadata=text)
    pyplot().close(figure)
