"""The report's sections on training: early steps, learning rates, variants of RAdam."""

from __future__ import annotations

import statistics
from typing import Any

from bench.paper import choices, early, robustness
from bench.paper.text import Picture, plain, prose, table, with_error
from bench.paper.training import LABELS

Records = dict[str, dict[str, Any]]
CLEAR = 0.1
"""Nats: the section on early steps reports a difference between two final losses from here on."""


def early_steps(records: Records, picture: Picture) -> list[str]:
    text = [
        *prose(
            "The paper: on IWSLT14 De-En a Transformer under Adam without warm-up stalls (figure 1), the distribution",
            "of its gradients being distorted within ten steps (figure 2); Adam-2k, whose second moment alone moves",
            "for 2,000 steps, and Adam-eps (1e-4) repair it, the second badly (figure 3). BLEU: Adam with warm-up",
            "34.66, RAdam 34.76. Here: a post-norm Transformer of a few layers at a constant learning rate of",
            f"{early.LR:g}.",
        ),
        *picture("early", "Loss curves"),
    ]
    for name, title in early.TASKS.items():
        by_method = early.by_method(records, name)
        if by_method:
            text += _early_task(by_method, title)
    return [
        *text,
        *prose("The absolute gradients (seed 0), a column a method, a row a task:"),
        *picture("gradients", "Histograms of the absolute gradients"),
    ]


def _early_task(by_method: dict[str, list[dict[str, Any]]], title: str) -> list[str]:
    settings = next(iter(by_method.values()))[0]["settings"]
    steps = sorted({int(s) for runs in by_method.values() for run in runs for s in run["result"]["histograms"]})
    shown = [step for step in (1, 10, 100) if step in steps] + steps[-1:]
    rows = []
    for key, runs in by_method.items():
        found, hold = early.summary(runs), runs[0]["settings"]["hold"]
        seen: dict[str, Any] = next(filter(None, (run["result"]["histograms"] for run in runs)), {})
        rows.append(
            [
                early.METHODS[key].label + (f" ({hold} steps of v first)" if hold else ""),
                *(plain(found[number]) for number in ("training", "validation", "worst")),
                f"{100 * found['accuracy']:.1f} %",
                *(plain(seen.get(str(step), {}).get("median"), 2) for step in shown),
            ]
        )
    headings = ["", "training loss, end", "validation loss", "worst seed", "accuracy"]
    runs = len(next(iter(by_method.values())))
    return [
        f"### {title[0].upper()}{title[1:]}",
        "",
        *prose(
            f"{settings['steps']} steps, T = {settings['warmup']}, seeds: {runs}; last columns: the median absolute",
            "gradient.",
        ),
        *table([*headings, *(f"step {step}" for step in shown)], rows),
        *prose(*_early_sentences(by_method)),
    ]


def _validation(by_method: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    return {key: early.summary(rows)["validation"] for key, rows in by_method.items()}


def needs(by_method: dict[str, list[dict[str, Any]]]) -> str:
    """One sentence: whether Adam needs warm-up on a task on which RAdam does not."""
    loss = _validation(by_method)
    numbers = f"Adam {plain(loss['adam'])}, with warm-up {plain(loss['adam-warmup'])}, RAdam {plain(loss['radam'])}"
    if loss["adam"] - loss["adam-warmup"] < CLEAR:
        return f"Adam does not fail here: {numbers}"
    if loss["adam"] - loss["radam"] < CLEAR:
        return f"no, RAdam fails too: {numbers}"
    return f"{'yes' if loss['radam'] - loss['adam-warmup'] < CLEAR else 'in part'}: {numbers}"


def _early_sentences(by_method: dict[str, list[dict[str, Any]]]) -> list[str]:
    loss = _validation(by_method)
    if not {"adam", "adam-warmup", "radam"} <= set(loss):
        return []
    best = min(loss, key=lambda key: loss[key])
    sentences = [
        f"Does Adam fail without warm-up, and RAdam not? {needs(by_method)}.",
        f"Lowest validation loss: {early.METHODS[best].label}, {plain(loss[best])}.",
    ]
    if "radam-exact" in loss:
        sentences.append(f"Exact less first-order r_t: {loss['radam-exact'] - loss['radam']:+.2g}.")
    if loss["adam"] - loss["adam-warmup"] >= CLEAR:
        for key in ("adam-2k", "adam-eps", "adam-untuned"):
            if key in loss:
                sentences.append(f"{early.METHODS[key].label} {_repairs(loss, key)} ({_seeds(by_method[key])}).")
    return sentences


def _repairs(loss: dict[str, float], key: str) -> str:
    """How far a method improves Adam's mean validation loss: not, in part, or fully."""
    if loss[key] - loss["adam-warmup"] < CLEAR:
        return "repairs it"
    return "repairs it in part" if loss["adam"] - loss[key] >= CLEAR else "does not repair it"


def _seeds(rows: list[dict[str, Any]]) -> str:
    """The mean; with several values also the smallest and the largest."""
    losses = sorted(early.validation(row) for row in rows)
    apart = f", seeds {plain(losses[0])} to {plain(losses[-1])}" if len(losses) > 1 else ""
    return plain(statistics.fmean(losses)) + apart


def learning_rates(records: Records, picture: Picture) -> list[str]:
    text = [
        *prose(
            "The paper: CIFAR10 (ResNet-20) SGD 91.51 %, Adam 90.54 %, RAdam 91.38 %; ImageNet (ResNet-18) 69.86,",
            "66.54, 67.62; One Billion Word perplexity Adam 36.92, RAdam 35.70; and RAdam's curves over the learning",
            "rates 0.1, 0.03, 0.01 and 0.003 are close together where Adam's and SGD's do not.",
        ),
        *prose(
            f"Here: β2 = {robustness.BETA2:g}, so that RAdam's warm-up, some {2 / (1 - robustness.BETA2):.0f} steps,",
            "is a part of these short runs and not all of them; cosine decay; the final loss on held-back data. A",
            "seed's spread is its largest less its smallest final loss over the learning rates; a run that diverged,",
            "or ends above it, counts as a model that knows nothing. Means over seeds, least and greatest in brackets.",
            "An optimizer that fails at every learning rate has no spread either, so the mean over the paper's",
            "learning rates stands beside it, and below at how many rates each is of use.",
        ),
        *picture("robustness", "Final losses and curves over learning rates"),
    ]
    for name in choices.names(records):
        text += _rates_task(records, name)
    return text


def _rates_task(records: Records, name: str) -> list[str]:
    runs = [record for record in records.values() if record["settings"]["task"] == name]
    settings, lrs = runs[0]["settings"], robustness.every_lr(records, name)
    seeds = len({run["settings"]["seed"] for run in runs})
    rows, accuracies, diverged = [], [], []
    for key in robustness.OPTIMIZERS:
        losses, right = robustness.losses(records, name, key), robustness.accuracies(records, name, key)
        four, every = (robustness.spreads(records, name, key, which) for which in (None, lrs))
        means = (plain(statistics.fmean(losses[lr].values())) for lr in lrs)
        mean = plain(robustness.mean_loss(records, name, key, robustness.PAPER_LRS))
        rows.append([LABELS[key], *means, mean, _spread(four), _spread(every)])
        accuracies.append([LABELS[key], *(f"{100 * statistics.fmean(right[lr]):.1f}" for lr in lrs)])
        count = sum(run["result"]["diverged"] for run in runs if run["settings"]["optimizer"] == key)
        diverged += [f"{LABELS[key]} {count}"] * bool(count)
    headings, chance = [f"lr {lr:g}" for lr in lrs], plain(runs[0]["result"]["chance"])
    text = [
        f"### {robustness.TASKS[name][0].upper()}{robustness.TASKS[name][1:]}",
        "",
        *prose(f"{settings['steps']} steps, {seeds} seeds; a model that knows nothing pays {chance}."),
        *table(["final loss", *headings, "mean, the paper's", "spread, the paper's", "spread, all"], rows),
    ]
    if name in ("digits", "cifar10"):
        text += table(["accuracy, %", *headings], accuracies)
    return text + _spread_sentences(records, name, diverged)


def _spread(found: dict[int, float]) -> str:
    if not found:
        return "-"
    return f"{plain(statistics.fmean(found.values()))} ({plain(min(found.values()))} to {plain(max(found.values()))})"


def _spread_sentences(records: Records, name: str, diverged: list[str]) -> list[str]:
    sentences = []
    for which, label in ((None, "the paper's learning rates"), (robustness.every_lr(records, name), "all of them")):
        ours = robustness.spreads(records, name, "radam", which)
        for key in ("adam", "sgd"):
            theirs = robustness.spreads(records, name, key, which)
            if set(ours) & set(theirs):
                found = robustness.compare(ours, theirs)
                sentences.append(
                    f"- Over {label} RAdam's spread is {robustness.verdict(found)} that of {LABELS[key]}: "
                    f"{with_error(found['mean'], found['error'])}, "
                    f"smaller in {found['smaller']} of {found['seeds']} seeds."
                )
    best = []
    for key in robustness.OPTIMIZERS:
        lr, loss = robustness.best(records, name, key)
        best.append(f"{LABELS[key]} {plain(loss)} ({lr:g})")
    sentences.append(f"- Each at its best learning rate: {'; '.join(best)}.")
    near = "; ".join(f"{LABELS[key]}: {count}" for key, count in robustness.usable(records, name).items())
    rates = len(robustness.every_lr(records, name))
    sentences.append(
        f"- How many of the {rates} learning rates end near the best of all, within a tenth of the way from there to "
        f"knowing nothing: {near}."
    )
    sentences += [f"- Diverged: {', '.join(diverged)}."] * bool(diverged)
    return [*sentences, ""]


def variants(records: Records, picture: Picture) -> list[str]:
    text = [
        *prose(
            "The paper rectifies where ρ_t > 4, by the first-order r_t, and steps by the momentum before; torch and",
            "the authors' code take 5; `degenerated_to_sgd=False` (no step) waits. Differences are paired by seed",
            "with the default's (same weights, same batches), in nats, ± one standard error; bold beyond 99 % of",
            "chance by Student's t, which one comparison in a hundred is by chance.",
            f"β2 = {robustness.BETA2:g}, as above; both r_t at 0.999 are in the section on early steps.",
        ),
        *picture("choices", "Differences from the default"),
    ]
    for name in choices.names(records):
        found = choices.table(records, name)
        rows = [
            [
                row["variant"],
                plain(row["final"], 4),
                _difference(row, "final_difference"),
                plain(row["curve"], 4),
                _difference(row, "curve_difference"),
                f"{100 * row['accuracy']:.1f} %",
            ]
            for row in found
        ]
        settings = next(r["settings"] for r in records.values() if r["settings"]["task"] == name)
        seeds = len({r["settings"]["seed"] for r in records.values() if r["settings"]["task"] == name})
        title = robustness.TASKS[name]
        text += [
            f"### {title[0].upper()}{title[1:]}",
            "",
            f"Learning rate {settings['lr']:g}, {settings['steps']} steps, {seeds} seeds:",
            "",
            *table(["", "final loss", "difference", "mean of the curve", "difference", "accuracy"], rows),
            *prose(*_variant_sentences(found)),
        ]
    return text


def _difference(row: dict[str, Any], key: str) -> str:
    if row["variant"] == choices.DEFAULT:
        return ""
    text = with_error(row[key]["mean"], row[key]["error"])
    return f"**{text}**" if choices.real(row[key]) else text


def _variant_sentences(found: list[dict[str, Any]]) -> list[str]:
    rows = [row for row in found if row["variant"] not in (choices.DEFAULT, choices.ADAM)]
    if not rows:
        return []
    largest = max(rows, key=lambda row: abs(row["final_difference"]["mean"]))
    sentences = [
        f"The largest difference in the final loss is {largest['final_difference']['mean']:+.2g}",
        f"({largest['variant']}), with seeds that differ by {plain(found[0]['deviation'], 2)} (standard deviation).",
    ]
    for key, label in (("final_difference", "final loss"), ("curve_difference", "mean of the curve")):
        real = [f"{row['variant']} ({row[key]['mean']:+.2g})" for row in rows if choices.real(row[key])]
        sentences.append(f"Beyond chance in the {label}: {'; '.join(real) if real else 'none'}.")
    return sentences
