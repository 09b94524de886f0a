"""``python -m bench.report.readme``: the README's numbers, rewritten from the files under bench/results.

A block begins with ``<!-- bench NAME -->`` and ends with ``<!-- end NAME -->``; `BLOCKS` says what each is made of, and
what it says where its file is not there. ``--check`` changes nothing, and fails where something would change.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.report import targets
from bench.report.tables import plain

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"
CPU_CASES = ("16M", "gpt2", "resnet50", "moe", "small", "small_cold")
GPU_CASES = (("256M", "fp32"), ("256M", "bf16"), ("llama", "fp32"), ("llama", "bf16"), ("small", "fp32"))

NO_TRAINING = "No training step was measured yet; `make bench` does that."

Found = dict[str, Any]


def table(headings: Sequence[str], columns: Sequence[dict[str, float]], labels: dict[str, str]) -> list[str]:
    """A row a contestant, the fastest of each column in bold, whoever that is; the ceiling is not a contestant.

    Args:
        headings: of the first column and of the others.
        columns: a number by contestant, for each heading but the first; a dash where one is missing.
        labels: the contestants, in their order.
    """
    best = [min((v for name, v in column.items() if name != "ceiling"), default=None) for column in columns]

    def cell(name: str, column: dict[str, float], fastest: float | None) -> str:
        if name not in column:
            return "–"
        text = plain(column[name])
        return f"**{text}**" if column[name] == fastest and name != "ceiling" else text

    lines = ["| " + " | ".join(headings) + " |", "| :-- |" + " --: |" * len(columns)]
    for name, label in labels.items():
        cells = [cell(name, column, fastest) for column, fastest in zip(columns, best, strict=True)]
        lines.append("| " + " | ".join([label, *cells]) + " |")
    return lines


def _where(found: Found) -> str:
    """Commit and date of a run, in words."""
    commit = (found["commit"]["hash"] or "no commit")[:12] + (" with changes" if found["commit"]["modified"] else "")
    return f"{commit}, torch {found['versions']['torch']}, {found['date'][:10]}"


def cpu(found: Found) -> list[str]:
    """Milliseconds of a step by case, with the command for just these."""
    by_name = {case["name"]: case for case in found["cases"]}
    cases = [by_name[name] for name in CPU_CASES if name in by_name]
    rows = {name: row for case in cases for name, row in case["contestants"].items()}
    labels = {
        name: row["label"] + ("" if row["bytes_per_element"] == 28 else " (8-bit moments)")
        for name, row in sorted(rows.items(), key=lambda item: ("ceiling", "ours", "peer").index(item[1]["role"]))
    }
    columns = [{name: row["ms"]["median"] for name, row in case["contestants"].items()} for case in cases]
    on = found["machine"]
    names = " ".join(case["name"] for case in cases)
    return [
        f"Milliseconds a step on {on['cores']} cores ({on['cpu']}, {on['vector']}, fp32), medians of rounds in which",
        f'all take turns; the fastest in bold. `make bench CASES="{names}"` reproduces it ({_where(found)});',
        "[step.md](bench/results/cpu/step.md) has quartiles, the floor, and who did not run and why.",
        "",
        *table(["ms a step", *(case["title"] for case in cases)], columns, labels),
    ]


def training(found: Found) -> list[str]:
    """Whole training steps, and the optimizer's share of them."""
    models = found["training"]
    if not models:
        return [NO_TRAINING]
    labels = {name: row["label"] for model in models for name, row in model["optimizers"].items()}
    headings, columns = ["training step"], []
    for model in models:
        headings += [f"{model['title']}: ms", "of it the optimizer, %"]
        columns += [
            {name: row["ms"]["median"] for name, row in model["optimizers"].items()},
            {name: 100 * row["optimizer_share"]["median"] for name, row in model["optimizers"].items()},
        ]
    names = " ".join(model["name"] for model in models)
    return [
        f'Whole training steps on the same machine (`make bench CASES="{names}"`, {_where(found)}):',
        "",
        *table(headings, columns, labels),
    ]


def promises(found: Found) -> list[str]:
    """What was promised and what came of it."""
    return [f"- {line}" for line in targets.lines(found)]


def gpu(found: Found) -> list[str]:
    """Milliseconds of a step in a loop by case and dtype."""
    labels = {row["contestant"]: row["label"] for row in found["rows"]}
    headings, columns = ["ms a step"], []
    for case, dtype in GPU_CASES:
        rows = [row for row in found["rows"] if (row["case"], row["dtype"]) == (case, dtype)]
        if rows:
            headings.append(f"{found['cases'][case]['title']}, {dtype}")
            columns.append({row["contestant"]: row["loop_ms"]["median"] for row in rows})
    return [
        f"Milliseconds a step in a loop on one {found['gpu']['name']}, medians, the fastest in bold; `make gpu`",
        f"reproduces it ({_where(found)}). torch's moments of bf16 parameters are bf16, ours fp32.",
        "",
        *table(headings, columns, labels),
    ]


BLOCKS: dict[str, tuple[str, Callable[[Found], list[str]], str]] = {
    "cpu": ("cpu/step.json", cpu, "Nothing was measured on a CPU yet; `make bench` does that."),
    "training": ("cpu/step.json", training, NO_TRAINING),
    "promises": ("cpu/step.json", promises, "Nothing was measured on a CPU yet; `make bench` does that."),
    "gpu": ("gpu/gpu.json", gpu, "Nothing here was measured on a GPU yet; `make gpu` does that where there is one."),
}
"""By name: the file, what is made of it, and what is said where it is missing."""


def block(name: str, results: Path = RESULTS) -> str:
    """What belongs between the markers of a block."""
    file, make, otherwise = BLOCKS[name]
    path = results / file
    if not path.exists():
        return otherwise
    return "\n".join(make(json.loads(path.read_text())))


def rewritten(text: str, results: Path = RESULTS) -> str:
    """The README with the numbers of the files.

    Raises:
        ValueError: a marker without its end, or a name that is none.
    """
    for name in re.findall(r"<!-- bench (\S+) -->", text):
        if name not in BLOCKS:
            raise ValueError(f"no block {name!r}: {', '.join(BLOCKS)}")
        pattern = re.compile(rf"(<!-- bench {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text, count = pattern.subn(lambda found, name=name: f"{found[1]}{block(name, results)}\n{found[2]}", text)
        if count != 1:
            raise ValueError(f"block {name!r}: {count} ends for its beginning")
    return text


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.report.readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where something would change")
    options = parser.parse_args(arguments)
    before = README.read_text()
    after = rewritten(before)
    if options.check:
        return int(before != after)
    README.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
