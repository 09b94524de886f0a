"""``python -m bench.report.readme``: the numbers of README.md and of `PAGES` in docs/, from the files of bench/results.

A block begins with ``<!-- bench NAME -->`` and ends with ``<!-- end NAME -->``. `BLOCKS` has the file that each block
is made from, and its text where that file is missing. ``--check`` changes nothing and fails if a page would change.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import keys
from bench.report import machine_code, targets, times
from bench.report.document import DASH, commit_and_date, markdown_table, plain
from bench.report.labels import label

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = (README, ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "performance.md")
RESULTS = ROOT / "bench" / "results"
CPU_CASES = ("16M", "gpt2", "resnet50", "moe", "small", "small_cold")
SHORT_CANDIDATES = ("fused", "fused-flat", "adamw-fused", "radam-foreach")
GPU_CASES = (("256M", "fp32"), ("256M", "bf16"), ("llama", "fp32"), ("llama", "bf16"), ("small", "fp32"))

NO_CPU = "Nothing has been measured on a CPU yet; `make bench` does that."
NO_GPU = "Nothing here was measured on a GPU yet; `make gpu` does that where there is one."
NO_TRAINING = "No training step has been measured yet; `python -m bench.studies.whole_step` measures them."

Found = dict[str, Any]


def table(headings: Sequence[str], columns: Sequence[dict[str, float]], labels: dict[str, str]) -> list[str]:
    """One row per candidate, the fastest of each column in bold; the roofline does not count.

    Args:
        headings: of all columns.
        columns: for each heading but the first, numbers by candidate; a missing one becomes a dash.
        labels: by candidate, in the order of the rows.
    """
    best = [min((v for name, v in column.items() if name != keys.ROOFLINE), default=None) for column in columns]

    def cell(name: str, column: dict[str, float], fastest: float | None) -> str:
        if name not in column:
            return DASH
        text = plain(column[name])
        return f"**{text}**" if column[name] == fastest and name != keys.ROOFLINE else text

    rows = [
        [text, *(cell(name, column, fastest) for column, fastest in zip(columns, best, strict=True))]
        for name, text in labels.items()
    ]
    return markdown_table(headings, rows)


def cpu(found: Found) -> list[str]:
    """Milliseconds per step by case, with the command that measures these cases."""
    by_name = {case["name"]: case for case in found["cases"]}
    cases = [by_name[name] for name in CPU_CASES if name in by_name]
    rows = {name: row for case in cases for name, row in case[keys.CANDIDATES].items()}
    labels = {
        name: label(name, row) + ("" if row["bytes_per_element"] == 28 else " (8-bit moments)")
        for name, row in sorted(
            rows.items(), key=lambda item: (keys.ROOFLINE, "ours", keys.BASELINE).index(item[1]["role"])
        )
    }
    columns = [{name: row["ms"]["median"] for name, row in case[keys.CANDIDATES].items()} for case in cases]
    on = found["machine"]
    names = " ".join(case["name"] for case in cases)
    return [
        f"Milliseconds per step on {on['cores']} cores ({on['cpu']}, {on['vector']}, fp32), medians of rounds in which",
        f'all take turns; the fastest in bold. `make bench CASES="{names}"` reproduces it ({commit_and_date(found)});',
        "[step.md](bench/results/cpu/step.md) has quartiles, lower bounds, and the optimizers that did not run.",
        "",
        *table(["ms per step", *(case["title"] for case in cases)], columns, labels),
    ]


def short(found: Found) -> list[str]:
    """The README's picture, `times.draw_short`, with numbers for readers that see no pictures."""
    by_name = {case["name"]: case for case in found["cases"]}
    numbers = []
    for name, title in times.SHORT_CASES.items():
        rows = by_name[name][keys.CANDIDATES] if name in by_name else {}
        said = [
            f"{label(key, rows[key])} {plain(rows[key]['ms']['median'])} ms" for key in SHORT_CANDIDATES if key in rows
        ]
        numbers += [f"{title}: {'; '.join(said)}"] if said else []
    on = found["machine"]
    return [
        f"![One step. {'. '.join(numbers)}](bench/results/cpu/short.png)",
        "",
        f"Measured on {on['cores']} cores ({commit_and_date(found)}).",
        "A whole training step also has its forward and backward pass: [all results](docs/benchmarks.md).",
    ]


def training(found: Found) -> list[str]:
    """Whole training steps and the optimizer's share of them, with quartiles."""
    models = found["training"]
    if not models:
        return [NO_TRAINING]
    names = " ".join(model["name"] for model in models)
    lines = [f'Whole training steps (`make bench CASES="{names}"`, {commit_and_date(found)}), medians and quartiles:']
    for model in models:
        rows = []
        for row in model["optimizers"].values():
            ms, share = row["ms"], row["optimizer_share"]
            quartiles = [
                f"{plain(ms['q1'])} to {plain(ms['q3'])}",
                f"{100 * share['q1']:.1f} to {100 * share['q3']:.1f}",
            ]
            rows.append([row["label"], plain(ms["median"]), quartiles[0], f"{100 * share['median']:.1f}", quartiles[1]])
        headings = [model["title"], "ms", "quartiles", "of it the optimizer, %", "quartiles"]
        lines += ["", *markdown_table(headings, rows)]
    return lines


def whole(found: Found) -> list[str]:
    """Whole training steps beside FusedRAdam's of the same round, and the optimizer's share of them."""
    on = found["machine"]
    lines = [
        f"Whole training steps on {on['cores']} cores ({on['cpu']}, {commit_and_date(found)}).",
        "`python -m bench.studies.whole_step` reproduces them ([raw](bench/results/cpu/whole-step.json)).",
        "All take turns. A ratio is that of two steps of one round, with the 95 % confidence interval of its median.",
        "The optimizer's part is `zero_grad` and `step`.",
    ]
    for model in found["models"].values():
        rows = []
        for row in model["candidates"].values():
            ms, ratio, share, parts = row["ms"], row["ratio"], row["optimizer_share"], row["parts_ms"]
            quartiles = f"{plain(ms['q1'])} to {plain(ms['q3'])}"
            interval = (
                "" if ratio["min"] == ratio["max"] else f" ({' to '.join(f'{x:.3f}' for x in ratio['interval'])})"
            )
            rows.append(
                [
                    row["label"],
                    plain(ms["median"]),
                    quartiles,
                    f"{ratio['median']:.3f}{interval}",
                    f"{100 * share['median']:.1f}",
                    *(plain(parts[part]) for part in ("zero_grad", "backward", "step")),
                ]
            )
        lines += [
            "",
            f"**{model['title']}**, {model['rounds']} rounds in {model['processes']} processes:",
            "",
            *markdown_table(
                [
                    "training step",
                    "ms",
                    "quartiles",
                    "× FusedRAdam",
                    "of it the optimizer, %",
                    "ms in `zero_grad`",
                    "in backward",
                    "in `step`",
                ],
                rows,
            ),
        ]
    return lines


def cpu_targets(found: Found) -> list[str]:
    """The performance targets of the CPU suite with their verdicts."""
    return [f"- {line}" for line in targets.lines(found)]


def gpu(found: Found) -> list[str]:
    """Milliseconds per step in a loop, by case and dtype."""
    labels = {row["candidate"]: row["label"] for row in found["rows"]}
    headings, columns = ["ms per step"], []
    for case, dtype in GPU_CASES:
        rows = [row for row in found["rows"] if (row["case"], row["dtype"]) == (case, dtype)]
        if rows:
            headings.append(f"{found['cases'][case]['title']}, {dtype}")
            columns.append({row["candidate"]: row["loop_ms"]["median"] for row in rows})
    return [
        f"Milliseconds per step in a loop on one {found['gpu']['name']}, medians, the fastest in bold; `make gpu`",
        f"reproduces it ({commit_and_date(found)}). torch's moments of bf16 parameters are bf16, ours fp32.",
        "",
        *table(headings, columns, labels),
    ]


BLOCKS: dict[str, tuple[str, Callable[[Found], list[str]], str]] = {
    "short": ("cpu/step.json", short, NO_CPU),
    "cpu": ("cpu/step.json", cpu, NO_CPU),
    "training": ("cpu/step.json", training, NO_TRAINING),
    "whole": ("cpu/whole-step.json", whole, NO_TRAINING),
    "targets": ("cpu/step.json", cpu_targets, NO_CPU),
    "gpu": ("gpu/gpu.json", gpu, NO_GPU),
    "machine_code": ("cuda/machine_code.json", machine_code.tables, machine_code.NOTHING),
}
"""By name: the file, the function that makes the block from it, and the text where the file is missing."""


def block(name: str, results: Path = RESULTS) -> str:
    """The text between a block's markers."""
    file, make, otherwise = BLOCKS[name]
    path = results / file
    if not path.exists():
        return otherwise
    return "\n".join(make(json.loads(path.read_text())))


def rewritten(text: str, results: Path = RESULTS, top: str = "") -> str:
    """A page with the numbers of the result files.

    Args:
        text: the page.
        results: the folder of the result files.
        top: the way from the page's folder to the root of the repository, as ``"../"``; links begin with it.

    Raises:
        ValueError: a marker has no end, or its name is no block's.
    """
    for name in re.findall(r"<!-- bench (\S+) -->", text):
        if name not in BLOCKS:
            raise ValueError(f"no block {name!r}: {', '.join(BLOCKS)}")
        made = block(name, results).replace("](bench/", f"]({top}bench/")
        pattern = re.compile(rf"(<!-- bench {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text, count = pattern.subn(lambda found, made=made: f"{found[1]}{made}\n{found[2]}", text)
        if count != 1:
            raise ValueError(f"block {name!r}: {count} ends for its beginning")
    return text


def page(path: Path) -> str:
    """One of `PAGES` as it should be."""
    return rewritten(path.read_text(), top="../" * (len(path.relative_to(ROOT).parts) - 1))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.report.readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a page would change")
    options = parser.parse_args(arguments)
    changed = {path: text for path in PAGES if (text := page(path)) != path.read_text()}
    if options.check:
        return int(bool(changed))
    for path, text in changed.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
