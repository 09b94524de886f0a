"""docs/paper.md: each figure and number beside the paper's, from the JSON alone.

Every verdict in its sentences is computed from the numbers: the code does not assume how the runs end.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.paper import choices, early, figures, report_theory, report_training, robustness
from bench.paper.text import plain, prose, table
from bench.paper.units import Store
from radam_fused.rectification import variance

TITLES = {"quick": "QUICK", "tiny": "TINY", "large": "LARGE"}
PARTS = {
    "theory": ("Theory", report_theory.lines),
    "early": ("Adam's early steps", report_training.early_steps),
    "robustness": ("Robustness to the learning rate", report_training.learning_rates),
    "choices": ("Which rectification, which threshold", report_training.variants),
}
EARLY_BLEU = "IWSLT14: Adam stalls; BLEU with warm-up 34.66, RAdam 34.76"
Records = dict[str, dict[str, Any]]


def write(store: Store, path: Path) -> None:
    """Draws the figures into the results' folder and writes the report."""
    drawn = figures.draw(store)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(os.path.relpath(store.folder.resolve(), path.parent.resolve())).as_posix()
    path.write_text(markdown(store, drawn, folder))


def markdown(store: Store, drawn: Sequence[str], folder: str) -> str:
    def picture(name: str, text: str) -> list[str]:
        link = f"{folder}/{name}.png" if folder != "." else f"{name}.png"
        return [f"![{text}]({link})", ""] if f"{name}.png" in drawn else []

    parts = {part: store.records(part) for part in PARTS}
    lines = _head(store) + _short(parts)
    for part, (title, section) in PARTS.items():
        lines += [f"## {title}", ""]
        lines += section(parts[part], picture) if parts[part] else ["Not run yet.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _head(store: Store) -> list[str]:
    lines = ["# The paper, with this optimizer", ""]
    abouts = {part: store.about(part) for part in PARTS}
    sizes = {about["sizes"] for about in abouts.values() if about}
    if sizes - {"full"}:
        names = ", ".join(sorted(TITLES.get(name, name) for name in sizes))
        lines += prose(f"**Sizes: {names}. This is not the full form, which `make paper` makes on a CPU.**")
    lines += prose(
        "Liu et al., *On the Variance of the Adaptive Learning Rate and Beyond*, ICLR 2020",
        "([arXiv 1908.03265](https://arxiv.org/abs/1908.03265)), on data that anyone has. `make paper` makes this",
        "file, its figures and the raw results again; `bench/paper/` is the code. Every RAdam is `FusedRAdam`, every",
        "Adam is `torch.optim.Adam`; betas 0.9 and 0.999 where nothing else is said, no weight decay, seeds fixed.",
    )
    for part, about in abouts.items():
        if about:
            on, by = about["machine"], about["versions"]
            commit = (about["commit"]["hash"] or "no commit")[:12]
            commit += " with changes" if about["commit"]["modified"] else ""
            lines.append(
                f"- {part}: {about['date'][:10]}, {on['cpu']}, {about['workers']} at a time, torch {by['torch']}, "
                f"{about['cpu'] / 60:.1f} min of CPU time, {commit}"
            )
    known = [about for about in abouts.values() if about]
    if known:
        cpu, clock = (sum(about[key] for about in known) / 60 for key in ("cpu", "seconds"))
        workers = min(about["workers"] for about in known)
        lines.append(
            f"- in all: {cpu:.1f} min of CPU time, so {cpu / workers:.1f} min with {workers} at a time on free cores; "
            f"{clock / workers:.1f} by the clock here"
        )
    return [*lines, ""]


def _short(parts: dict[str, Records]) -> list[str]:
    """A table of the paper's claims, its numbers for them, and those measured here."""
    theory = {name: record["result"] for name, record in parts["theory"].items()}
    rows = []
    if "figure8" in theory:
        five, fifty = (variance(nu, "first_order") / variance(nu, "exact") for nu in (5.0, 50.0))
        text = f"{100 * (fifty - 1):.1f} % too large at ν = 50, {plain(five)} times at 5"
        rows.append(["The first-order variance is close to Theorem 1's", "figure 8, ν = 5 to 500", text])
        text = "so for the first order (Var[ψ²] needs ν > 4); Theorem 1's Var[ψ] is finite for ρ > 2"
        rows.append(["The variance, and so r_t, exists for ρ > 4", "algorithm 2", text])
    if "figure9" in theory:
        text = report_theory.constant(theory["figure9"])
        rows.append(["r_t makes Var[r_t ψ] constant", "figure 9, 5,000 paths", text])
    if "sma" in theory:
        short = 100 * (1 - theory["sma"]["dip"]["ratio_1000"])
        text = f"r_t is {short:.1f} % too small at t = 1,000: a dip of its own"
        rows.append(["An SMA over ρ_t gradients stands for the EMA", "section 4", text])
    for name, title in early.TASKS.items():
        by_method = early.by_method(parts["early"], name)
        if {"adam", "radam", "adam-warmup"} <= set(by_method):
            text = report_training.needs(by_method)
            rows.append([f"Without warm-up Adam fails and RAdam does not: {title}", EARLY_BLEU, text])
    for name in choices.names(parts["robustness"]):
        found = _spreads(parts["robustness"], name)
        if found:
            task = robustness.SHORT[name]
            rows.append(
                [
                    f"RAdam is less sensitive to the learning rate: {task}",
                    "the curves of four rates are close together",
                    found,
                ]
            )
    for name in choices.names(parts["choices"]):
        rows.append([f"Which RAdam matters: {robustness.SHORT[name]}", "-", _which(parts["choices"], name)])
    if not rows:
        return []
    return ["## In short", "", *table(["claim", "the paper", "here"], rows, ":--"), *_plainly(parts["robustness"])]


def _plainly(records: Records) -> list[str]:
    """Whether RAdam's spread is below Adam's, and its best loss, over the tasks."""
    words, lower = [], 0
    for name in choices.names(records):
        ours, theirs = (robustness.spreads(records, name, key) for key in ("radam", "adam"))
        if set(ours) & set(theirs):
            words.append(robustness.verdict(robustness.compare(ours, theirs)))
            lower += robustness.best(records, name, "radam")[1] < robustness.best(records, name, "adam")[1]
    if not words:
        return []
    below, above = words.count("below"), words.count("above")
    return prose(
        f"Of {len(words)} tasks RAdam's spread over the paper's learning rates is below Adam's on {below}, above it on",
        f"{above}, and not clearly either on {len(words) - below - above}; its loss at its best learning rate is lower",
        f"than Adam's at Adam's best on {lower}. A small spread can be that of failing everywhere.",
    )


def _spreads(records: Records, name: str) -> str | None:
    texts = []
    for which, label in ((None, "the paper's four learning rates"), (robustness.every_lr(records, name), "all")):
        ours, theirs = (robustness.spreads(records, name, key, which) for key in ("radam", "adam"))
        if set(ours) & set(theirs):
            means = [statistics.fmean(spread.values()) for spread in (ours, theirs)]
            word = robustness.verdict(robustness.compare(ours, theirs))
            texts.append(f"spread over {label}: RAdam's {plain(means[0])} is {word} Adam's {plain(means[1])}")
    if texts:
        radam, adam = (robustness.mean_loss(records, name, key) for key in ("radam", "adam"))
        texts.append(f"mean loss over all: {plain(radam)} and {plain(adam)}")
        near, rates = robustness.usable(records, name), len(robustness.every_lr(records, name))
        texts.append(f"rates of {rates} that end near the best of all: {near['radam']} and {near['adam']}")
    return "; ".join(texts) or None


def _which(records: Records, name: str) -> str:
    rows = [row for row in choices.table(records, name) if row["variant"] not in (choices.DEFAULT, choices.ADAM)]
    differ = [row["variant"] for row in rows if choices.real(row["final_difference"])]
    return (
        f"in the final loss beyond chance: {'; '.join(differ)}"
        if differ
        else "no difference in the final loss beyond chance"
    )
