"""The CPU suite's tables, in a terminal and as Markdown, made from what `bench.harness.step_results` saves."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench import keys
from bench.harness.step_results import OUR_CANDIDATES
from bench.optimizers.candidates import CPU_CANDIDATES
from bench.report import targets
from bench.report.document import DASH, Document, Section, cell, commit, plain
from bench.report.labels import label

HEADINGS = ["one step of", "ms", "lower bound", "of bound", "× flatten", "× fused", "checked"]
TRAINING = ["one training step with", "ms", "optimizer ms", "its share", "× torch RAdam"]
METHOD = (
    "Medians (and quartiles) over rounds in which the candidates take turns. The lower bound of a step in ms is the",
    "bytes that it moves at least (28 per element; fewer, in brackets, with 8-bit moments) divided by the bandwidth of",
    "the roofline, a loop over the same four arrays that only adds, in the same rounds. × is a candidate's time over",
    "that of FusedRAdam with and without `flatten` in the same round. Checked: the parameters after the rounds",
    "against torch.optim.RAdam's, the largest difference relative to the largest parameter; FusedRAdam's must have the",
    "bits of `reference`; those of an Adam must only move. `make bench` makes this file; `bench/harness/interleave.py`",
    "describes the method.",
)


def checked(row: dict[str, Any]) -> str:
    """The result of the comparison with torch.optim.RAdam."""
    check = row.get("check")
    if check is None:
        return DASH
    if not check["moves"]:
        return "DOES NOT MOVE"
    if check["bits"] is not None:
        return "same bits" if check["bits"] else "OTHER BITS"
    if check["difference"] is None:
        return "moves"
    return f"{check['difference']:.0e} off"


def rows(case: dict[str, Any], spread: bool) -> list[list[str]]:
    """The table of a case, fastest first, with quartiles if `spread`."""
    return [
        [
            label(name, row) + ("" if row["bytes_per_element"] == 28 else f" ({row['bytes_per_element']} B)"),
            cell(row["ms"], spread),
            plain(row.get("floor_ms")),
            cell(row.get("share_of_floor"), spread, 100.0, " %"),
            *("1" if ours == name else cell(row["times_ours"].get(ours), spread) for ours in OUR_CANDIDATES),
            checked(row),
        ]
        for name, row in sorted(case[keys.CANDIDATES].items(), key=lambda item: item[1]["ms"]["median"])
    ]


def training_rows(trained: dict[str, Any], spread: bool) -> list[list[str]]:
    """The table of a model, fastest first, with quartiles if `spread`."""
    return [
        [
            row["label"],
            cell(row["ms"], spread),
            cell(row["optimizer_ms"], spread),
            cell(row["optimizer_share"], spread, 100.0, " %"),
            cell(row["times_before"], spread),
        ]
        for row in sorted(trained["optimizers"].values(), key=lambda row: row["ms"]["median"])
    ]


def notes(case: dict[str, Any]) -> list[str]:
    """The conditions under which a case was measured, and the candidates that were skipped."""
    rounds = [row["rounds"] for row in case[keys.CANDIDATES].values() if row["role"] == keys.BASELINE]
    rounds = rounds or [row["rounds"] for row in case[keys.CANDIDATES].values()]
    groups = f" in each of {case[keys.MEMORY_GROUPS]} memory groups" if case[keys.MEMORY_GROUPS] > 1 else ""
    over = f"the roofline ran over {case['ceiling_over']}"
    lines = [f"{min(rounds, default=0)} rounds{groups}; caches {case['caches']}; {over}"]
    if case["others_share_of_cpu"] is not None:
        lines[0] += f"; other processes had {100 * case['others_share_of_cpu']:.0f} % of the CPU time"
    if case["agrees"] is not None:
        lines.append(
            f"the parameters {'agree' if case['agrees'] else 'DO NOT AGREE'} with those of torch.optim.RAdam, which "
            f"moved by {case['moved']:.1e} of the largest"
        )
    return lines + skipped_lines(case[keys.SKIPPED])


def skipped_lines(skipped: dict[str, str]) -> list[str]:
    """The candidates that did not run, one line per reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        by_reason.setdefault(reason, []).append(CPU_CANDIDATES[name].label)
    return [f"{', '.join(labels)} did not run: {reason}" for reason, labels in by_reason.items()]


def header(found: dict[str, Any]) -> list[str]:
    """Machine and versions, in lines."""
    on, by = found["machine"], found["versions"]
    levels = ", ".join(f"{level} {size}" for level, size in on["caches"].items())
    packages = ", ".join(f"{name} {version}" for name, version in by[keys.PACKAGES].items() if version)
    return [
        f"{on['cpu']}, {on['cores']} cores ({levels}), {on['vector']}, {found['threads']} threads, "
        f"huge pages {on['transparent_huge_pages']}",
        f"radam_fused {by['radam_fused']} ({commit(found)}), torch {by['torch']}, Python {by['python']}, "
        f"{by['compiler']}",
        *([packages] if packages else []),
        f"{found['date']}",
    ]


def document(found: dict[str, Any], plots: list[str]) -> Document:
    """The report of a run; `plots` are the file names of the pictures beside it."""
    sections = [
        Section(case["title"], HEADINGS, rows(case, spread=False), rows(case, spread=True), notes(case))
        for case in found["cases"]
    ]
    sections += [
        Section(
            f"Training: {trained['title']}",
            TRAINING,
            training_rows(trained, spread=False),
            training_rows(trained, spread=True),
            skipped_lines(trained[keys.SKIPPED]),
        )
        for trained in found["training"]
    ]
    not_measured = [f"{name} was not measured: {reason}" for name, reason in found["skipped"].items()]
    return Document("One optimizer step", header(found), METHOD, targets.lines(found), sections, plots, not_measured)


def show(report: Document, console: Console) -> None:
    """The report in a terminal, in colour."""
    for section in report.sections:
        table = Table(title=section.title, title_justify="left", title_style="bold", caption_justify="left")
        table.box, table.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)
        table.caption = "\n".join(section.notes)
        for index, heading in enumerate(section.headings):
            table.add_column(heading, justify="left" if index == 0 else "right", no_wrap=True)
        for row in section.brief:
            table.add_row(*row, style="bold green" if row[0].startswith("FusedRAdam") else None)
        console.print(table)
    for line in report.targets:
        console.print(line, style="green" if line.startswith("PASS") else "yellow", highlight=False, markup=False)
    for line in report.header:
        console.print(line, style="dim", highlight=False)
