"""The CPU suite's pictures: times beside the baselines, the share of the roofline, scaling curves.

``python -m bench.report.plots [FOLDER]`` draws them again from the folder's step.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench.report import roofline, scaling, times

PICTURES = {
    "step.png": times.draw,
    "short.png": times.draw_short,
    "roofline.png": roofline.draw,
    "scaling.png": scaling.draw,
}
RESULTS = Path(__file__).parents[1] / "results" / "cpu"


def draw(found: dict[str, Any], folder: Path) -> list[str]:
    """Writes the pictures for which there are results, and returns their file names."""
    return [name for name, picture in PICTURES.items() if picture(found, folder / name)]


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0]) if arguments else RESULTS
    for name in draw(json.loads((folder / "step.json").read_text()), folder):
        print(folder / name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
