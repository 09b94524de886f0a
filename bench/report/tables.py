"""The tables of a run, in a terminal and as Markdown, made from what `bench.harness.results` keeps."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.harness.results import OURS
from bench.optimizers.candidates import CONTESTANTS
from bench.report import targets

HEADINGS = ["one step of", "ms", "floor", "of floor", "× flatten", "× fused", "checked"]
TRAINING = ["one training step with", "ms", "optimizer ms", "its share", "× torch RAdam"]


def plain(value: float) -> str:
    """Three significant digits, never in exponents."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cell(value: dict[str, float] | None, spread: bool, unit: float = 1.0, suffix: str = "") -> str:
    """A median, and the quartiles in brackets if `spread`."""
    if value is None:
        return "–"
    median, q1, q3 = (plain(unit * value[name]) for name in ("median", "q1", "q3"))
    return median + suffix + (f" ({q1} to {q3})" if spread else "")


def checked(row: dict[str, Any]) -> str:
    """What the comparison with torch.optim.RAdam said of a row."""
    check = row.get("check")
    if check is None:
        return "–"
    if not check["moves"]:
        return "DOES NOT MOVE"
    if check["bits"] is not None:
        return "same bits" if check["bits"] else "OTHER BITS"
    if check["difference"] is None:
        return "moves"
    return f"{check['difference']:.0e} off"


def rows(case: dict[str, Any], spread: bool) -> list[list[str]]:
    """The table of a case, fastest first, as text; medians, and quartiles in brackets if `spread`."""
    return [
        [
            row["label"] + ("" if row["bytes_per_element"] == 28 else f" ({row['bytes_per_element']} B)"),
            cell(row["ms"], spread),
            plain(row["floor_ms"]) if "floor_ms" in row else "–",
            cell(row.get("share_of_floor"), spread, 100.0, " %"),
            *("1" if ours == name else cell(row["times_ours"].get(ours), spread) for ours in OURS),
            checked(row),
        ]
        for name, row in sorted(case["contestants"].items(), key=lambda item: item[1]["ms"]["median"])
    ]


def training_rows(trained: dict[str, Any], spread: bool) -> list[list[str]]:
    """The table of a model, fastest first."""
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
    """What has to be known to read the table of a case."""
    rounds = [row["rounds"] for name, row in case["contestants"].items() if row["role"] == "peer"]
    rounds = rounds or [row["rounds"] for row in case["contestants"].values()]
    counted = f"{min(rounds, default=0)} rounds" + (f" in each of {case['heats']} heats" if case["heats"] > 1 else "")
    lines = [f"{counted}; caches {case['caches']}; the ceiling ran over {case['ceiling_over']}"]
    if case["others_share_of_cpu"] is not None:
        lines[0] += f"; other processes had {100 * case['others_share_of_cpu']:.0f} % of the CPU time"
    if case["agrees"] is not None:
        lines.append(
            f"what was timed {'agrees' if case['agrees'] else 'DOES NOT AGREE'} with torch.optim.RAdam, whose "
            f"parameters had moved by {case['moved']:.1e} of the largest"
        )
    return lines + absences(case["absent"])


def absences(absent: dict[str, str]) -> list[str]:
    """Who did not run, a line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in absent.items():
        by_reason.setdefault(reason, []).append(CONTESTANTS[name].label)
    return [f"{', '.join(labels)} did not run: {reason}" for reason, labels in by_reason.items()]


def header(found: dict[str, Any]) -> list[str]:
    """Machine and versions, in lines."""
    on, by = found["machine"], found["versions"]
    levels = ", ".join(f"{level} {size}" for level, size in on["caches"].items())
    commit = (found["commit"]["hash"] or "no commit")[:12] + (" with changes" if found["commit"]["modified"] else "")
    peers = ", ".join(f"{name} {version}" for name, version in by["peers"].items() if version)
    return [
        f"{on['cpu']}, {on['cores']} cores ({levels}), {on['vector']}, {found['threads']} threads, "
        f"huge pages {on['transparent_huge_pages']}",
        f"radam_fused {by['radam_fused']} ({commit}), torch {by['torch']}, Python {by['python']}, {by['compiler']}",
        *([peers] if peers else []),
        f"{found['date']}",
    ]


def _table(headings: list[str], body: list[list[str]]) -> list[str]:
    """As Markdown."""
    lines = ["| " + " | ".join(headings) + " |", "| :-- |" + " --: |" * (len(headings) - 1)]
    return lines + ["| " + " | ".join(row) + " |" for row in body]


def markdown(found: dict[str, Any], plots: list[str]) -> str:
    """The report as Markdown; `plots` are the names of the pictures beside it."""
    lines = ["# One optimizer step", "", *(f"- {line}" for line in header(found)), ""]
    lines += [
        "Medians (and quartiles) over rounds in which the contestants take turns. The floor of a step in ms is the",
        "bytes that it has to move (28 an element; fewer, in brackets, with 8-bit moments) over the bandwidth of the",
        "ceiling, a loop over the same four arrays that only adds, in the same rounds. × says how many times as",
        "long as FusedRAdam with and without `flatten` each took in the same round. Checked: the parameters after",
        "the rounds against torch.optim.RAdam's, the largest difference relative to the largest parameter;",
        "FusedRAdam's have the bits of `reference`; those of an Adam only have to move. `make bench` makes this file;",
        "the method is in `bench/harness/interleave.py`.",
        "",
        "## Claims",
        "",
        *(f"- {claim}" for claim in targets.lines(found)),
        "",
    ]
    for name in plots:
        lines += [f"![{name.removesuffix('.png')}]({name})", ""]
    for case in found["cases"]:
        lines += [f"## {case['title']}", "", *_table(HEADINGS, rows(case, spread=True))]
        lines += ["", *(f"- {note}" for note in notes(case)), ""]
    for trained in found["training"]:
        lines += [f"## Training: {trained['title']}", "", *_table(TRAINING, training_rows(trained, spread=True)), ""]
        lines += [*(f"- {line}" for line in absences(trained["absent"])), ""]
    lines += [f"- {name} was not measured: {reason}" for name, reason in found["skipped"].items()]
    return "\n".join(lines).rstrip() + "\n"


def _shown(console: Console, title: str, headings: list[str], body: list[list[str]], caption: list[str]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left")
    table.box, table.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)
    table.caption = "\n".join(caption)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right", no_wrap=True)
    for row in body:
        table.add_row(*row, style="bold green" if row[0].startswith("FusedRAdam") else None)
    console.print(table)


def show(found: dict[str, Any], console: Console) -> None:
    """The report in a terminal."""
    for case in found["cases"]:
        _shown(console, case["title"], HEADINGS, rows(case, spread=False), notes(case))
    for trained in found["training"]:
        body = training_rows(trained, spread=False)
        _shown(console, trained["title"], TRAINING, body, absences(trained["absent"]))
    for claim in targets.lines(found):
        console.print(claim, style="green" if claim.startswith("PASS") else "yellow", highlight=False, markup=False)
    for line in header(found):
        console.print(line, style="dim", highlight=False)
