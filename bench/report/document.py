"""The one form of report, which the CPU and the GPU suite fill: a `Document` as Markdown and as plain text.

Needs neither torch nor rich, as ``make gpu`` may run where only torch is installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DASH = "–"


@dataclass
class Section:
    """One table.

    Attributes:
        brief: the rows with medians only, for a terminal.
        full: the same rows with quartiles.
        notes: lines below the table.
    """

    title: str
    headings: Sequence[str]
    brief: list[list[str]]
    full: list[list[str]]
    notes: Sequence[str] = ()


@dataclass
class Document:
    """A whole report.

    Attributes:
        header: machine, versions and date, in lines.
        method: what the columns mean.
        targets: the performance targets with their verdicts, in lines.
        plots: file names of the pictures beside the report.
        notes: lines at the end.
    """

    title: str
    header: Sequence[str]
    method: Sequence[str]
    targets: Sequence[str]
    sections: Sequence[Section]
    plots: Sequence[str] = ()
    notes: Sequence[str] = field(default_factory=list)

    def markdown(self) -> str:
        """With quartiles."""
        lines = [f"# {self.title}", "", *_items(self.header), "", *self.method, ""]
        lines += ["## Performance targets", "", *_items(self.targets), ""]
        for name in self.plots:
            lines += [f"![{name.removesuffix('.png')}]({name})", ""]
        for section in self.sections:
            lines += [f"## {section.title}", "", *markdown_table(section.headings, section.full), ""]
            lines += [*_items(section.notes), ""] if section.notes else []
        lines += _items(self.notes)
        return "\n".join(lines).rstrip() + "\n"

    def text(self) -> str:
        """With medians only, short enough for the end of a log."""
        lines = []
        for section in self.sections:
            lines += [section.title, *_aligned([list(section.headings), *section.brief]), *section.notes]
        return "\n".join([*lines, *self.notes, *self.header])


def _items(lines: Iterable[str]) -> list[str]:
    return [f"- {line}" for line in lines]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines of columns, the first column to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *rest in rows:
        aligned = [text.rjust(width) for text, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *aligned]))
    return lines


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table in lines, the first column to the left."""
    lines = ["| " + " | ".join(headings) + " |", "| :-- |" + " --: |" * (len(headings) - 1)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def replace_between(page: Path, name: str, text: str) -> None:
    """Puts a text between ``<!-- name -->`` and ``<!-- /name -->`` of a page.

    Raises:
        ValueError: the page lacks one of the two.
    """
    head, begin, rest = page.read_text().partition(f"<!-- {name} -->\n")
    _, end, tail = rest.partition(f"<!-- /{name} -->")
    if not (begin and end):
        raise ValueError(f"{page} has no place for {name!r}")
    page.write_text(f"{head}{begin}{text}\n{end}{tail}")


def plain(value: float | None, suffix: str = "") -> str:
    """Three significant digits, never with an exponent; a dash for None."""
    if value is None:
        return DASH
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}") + suffix


def cell(value: Mapping[str, float] | None, spread: bool, unit: float = 1.0, suffix: str = "") -> str:
    """A median, times `unit`, with the quartiles in brackets if `spread`."""
    if value is None:
        return DASH
    median, q1, q3 = (plain(unit * value[name]) for name in ("median", "q1", "q3"))
    return median + suffix + (f" ({q1} to {q3})" if spread else "")


def commit(found: Mapping[str, Any]) -> str:
    """The commit that a result file was made from."""
    changes = " with changes" if found["commit"]["modified"] else ""
    return (found["commit"]["hash"] or "no commit")[:12] + changes


def commit_and_date(found: Mapping[str, Any]) -> str:
    """The commit, torch's version and the day of a result file."""
    return f"{commit(found)}, torch {found['versions']['torch']}, {found['date'][:10]}"
