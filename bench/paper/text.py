"""Markdown: numbers, tables, paragraphs."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence

Picture = Callable[[str, str], list[str]]
"""Returns the lines for a figure, given its name and text; none if it was not drawn."""


def plain(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], side: str = "--:") -> list[str]:
    """Columns of numbers after the first; ``side=":--"`` for text."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(headings), "| :-- |" + f" {side} |" * (len(headings) - 1), *map(line, rows), ""]


def prose(*sentences: str) -> list[str]:
    """A paragraph."""
    joined = " ".join(filter(None, sentences))
    return [*textwrap.wrap(joined, 120, break_long_words=False, break_on_hyphens=False), ""]


def with_error(mean: float, error: float) -> str:
    return f"{mean:+.2g}" + (f" ± {plain(error, 2)}" if math.isfinite(error) else "")
