"""docs/paper.md: each figure and number beside the paper's, from the JSON alone.

The sentences do not know how the runs end: every verdict in them is computed from the numbers.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.paper import choices, early, figures, robustness
from bench.paper.training import LABELS
from bench.paper.units import Store
from radam_fused.rectification import exact_variance, rectification, rho, variance

TITLES = {"quick": "QUICK", "tiny": "TINY", "large": "LARGE"}
Records = dict[str, dict[str, Any]]


def plain(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(headings) + " |", "| :-- |" + " --: |" * (len(headings) - 1)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def write(store: Store, path: Path) -> None:
    """The figures into the results' folder, and the report."""
    drawn = figures.draw(store)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(os.path.relpath(store.folder.resolve(), path.parent.resolve())).as_posix()
    path.write_text(markdown(store, drawn, folder))


def markdown(store: Store, drawn: Sequence[str], folder: str) -> str:
    def picture(name: str, text: str) -> list[str]:
        link = f"{folder}/{name}.png" if folder != "." else f"{name}.png"
        return [f"![{text}]({link})", ""] if f"{name}.png" in drawn else []

    lines = _head(store)
    theory = {name: record["result"] for name, record in store.records("theory").items()}
    parts = {part: store.records(part) for part in ("early", "robustness", "choices")}
    lines += _short(theory, parts)
    for wanted, section in (
        ("Theory", lambda: _theory(theory, picture) if theory else None),
        ("Adam's early steps", lambda: _early(parts["early"], picture) if parts["early"] else None),
        (
            "Robustness to the learning rate",
            lambda: _robust(parts["robustness"], picture) if parts["robustness"] else None,
        ),
        (
            "Which rectification, which threshold",
            lambda: _choice(parts["choices"], picture) if parts["choices"] else None,
        ),
    ):
        lines += [f"## {wanted}", "", *(section() or ["Not run yet.", ""])]
    return "\n".join(lines).rstrip() + "\n"


def _head(store: Store) -> list[str]:
    lines = ["# The paper, with this optimizer", ""]
    abouts = {part: store.about(part) for part in ("theory", "early", "robustness", "choices")}
    sizes = {about["sizes"] for about in abouts.values() if about}
    if sizes - {"full"}:
        names = ", ".join(sorted(TITLES.get(name, name) for name in sizes))
        lines += [f"**Sizes: {names}. Not the full form: `make paper` is.**", ""]
    lines += [
        "Liu et al., *On the Variance of the Adaptive Learning Rate and Beyond*, ICLR 2020",
        "([arXiv 1908.03265](https://arxiv.org/abs/1908.03265)), on data that anyone has. `make paper` makes this file, its",
        "figures and the raw results again; `bench/paper/` is the code. Every RAdam is `FusedRAdam`, every Adam is",
        "`torch.optim.Adam`; betas 0.9 and 0.999, no weight decay, seeds fixed.",
        "",
    ]
    for part, about in abouts.items():
        if about:
            on, by = about["machine"], about["versions"]
            commit = (about["commit"]["hash"] or "no commit")[:12]
            commit += " with changes" if about["commit"]["modified"] else ""
            lines.append(
                f"- {part}: {about['date'][:10]}, {on['cpu']}, {about['workers']} workers, torch {by['torch']}, {commit}"
            )
    return [*lines, ""]


def _short(theory: dict[str, Any], parts: dict[str, Records]) -> list[str]:
    """The claims, and what became of them here."""
    rows = []
    if "figure8" in theory:
        five = variance(5.0, "first_order") / variance(5.0, "exact")
        rows.append(
            ["The first-order variance is close to Theorem 1", f"from ν = 50 on; {plain(five)} times too large at 5"]
        )
    if "figure9" in theory:
        rows.append(["r_t makes Var[r_t ψ] constant", _constant(theory["figure9"])])
    for name in early.TASKS:
        by_method = early.by_method(parts["early"], name)
        if {"adam", "radam"} <= set(by_method):
            rows.append([f"Adam needs warm-up, RAdam does not: {early.TASKS[name]}", _needs(by_method)])
    for name in choices.names(parts["robustness"]):
        found = _paired(parts["robustness"], name)
        if found:
            rows.append([f"RAdam is less sensitive to the learning rate: {robustness.SHORT[name]}", found])
    for name in choices.names(parts["choices"]):
        rows.append([f"Variants of RAdam differ: {robustness.SHORT[name]}", _which(parts["choices"], name)])
    return ["## In short", "", *table(["claim", "here"], rows).copy()] if rows else []


def _constant(found: dict[str, Any]) -> str:
    """How far Var[r ψ] is from its limit over the simulation with mean 0."""
    texts = []
    for key, label in (("r_first_order", "first order"), ("r_exact", "exact")):
        ratios = [
            (r * r * value / found["limit"], t)
            for t, r, value in zip(found["t"], found[key], found["variance"][0], strict=True)
            if r is not None
        ]
        low, high = min(ratios), max(ratios)
        texts.append(f"{label} {plain(low[0])} (t = {low[1]}) to {plain(high[0])} (t = {high[1]})")
    return "Var over its limit: " + "; ".join(texts)


def _needs(by_method: dict[str, list[dict[str, Any]]]) -> str:
    loss = {key: early.summary(rows)["validation"] for key, rows in by_method.items()}
    text = f"Adam {plain(loss['adam'])}, RAdam {plain(loss['radam'])}"
    if "adam-warmup" in loss:
        text += f", Adam with warm-up {plain(loss['adam-warmup'])}"
        if loss["adam"] - loss["radam"] < 0.1:
            return f"not seen: {text}"
        text += "" if loss["radam"] - loss["adam-warmup"] < 0.1 else "; RAdam is behind warm-up"
    return text


def _paired(records: Records, name: str) -> str | None:
    ours, theirs = (robustness.spreads(records, name, key) for key in ("radam", "adam"))
    if not set(ours) & set(theirs):
        return None
    found = robustness.compare(ours, theirs)
    means = [statistics.fmean(spread.values()) for spread in (ours, theirs)]
    return f"RAdam's spread, {plain(means[0])}, is {robustness.verdict(found)} Adam's, {plain(means[1])}"


def _which(records: Records, name: str) -> str:
    rows = [row for row in choices.table(records, name) if row["variant"] not in (choices.DEFAULT, choices.ADAM)]
    differ = [row["variant"] for row in rows if choices.real(row["final_difference"])]
    return f"in the final loss: {'; '.join(differ)}" if differ else "not in the final loss"


def _theory(theory: dict[str, Any], picture: Any) -> list[str]:
    lines: list[str] = []
    if "lengths" in theory:
        lines += ["### ρ_t and r_t", "", *picture("lengths", "rho_t and r_t over t")]
        rows = []
        for t in (5, 6, 10, 20, 100, 1000, 10000):
            r = [rectification(t, 0.999, kind, 4.0) or 0.0 for kind in ("first_order", "exact")]
            rows.append([str(t), plain(rho(t, 0.999), 5), plain(r[0], 4), plain(r[1], 4), plain(r[1] / r[0])])
        lines += table(["t, β2 = 0.999", "ρ_t", "r_t, first order", "r_t, exact", "exact / first order"], rows)
        lines += [
            "For β2 >= 0.9 ρ_t > 4 holds from t = 5 on and ρ_t > 5 from t = 6 on: the two thresholds differ in one step.",
            "",
        ]
    if "figure8" in theory:
        lines += _figure8(theory["figure8"], picture)
    if "figure9" in theory:
        lines += _figure9(theory["figure9"], picture)
    if "divergence" in theory and "sma" in theory:
        lines += picture("approximation", "Divergence at t = 1, and degrees of freedom")
        lines += _divergence(theory["divergence"]) + _sma(theory["sma"])
    return lines


def _figure8(found: dict[str, Any], picture: Any) -> list[str]:
    rows = []
    for nu in (5, 6, 8, 10, 20, 50, 100, 200, 500):
        exact, first = (found[key][found["nu"].index(nu)] for key in ("exact", "first_order"))
        rows.append(
            [str(nu), plain(exact, 5), plain(first, 5), plain(first - exact), f"{100 * (first / exact - 1):.3g} %"]
        )
    ratio = variance(5.0, "first_order") / variance(5.0, "exact")
    return [
        "### Figure 8: the first-order variance against Theorem 1",
        "",
        *picture("figure8", "Exact and first-order variance"),
        *table(["ν", "exact", "first order", "absolute error", "relative error"], rows),
        f"The paper calls the approximation good. It is from ν = 50 on; at ρ = 5 it is {plain(ratio)} times too large, and so",
        f"the first rectified steps of the first-order r_t are up to {plain(ratio**0.5)} times too short.",
        "What exists where: the first-order form needs ρ > 4, as the variance of 1/X for X scaled-χ² needs ν > 4; Theorem",
        f"1's Var[ψ] exists for ρ > 2 already: {plain(exact_variance(3.0))} τ² at ρ = 3, {plain(exact_variance(2.1))} at 2.1.",
        "The paper's threshold ρ > 4 is the approximation's, not ψ's own.",
        "",
    ]


def _figure9(found: dict[str, Any], picture: Any) -> list[str]:
    checks = found["checks"]
    worst = max(checks, key=lambda c: abs(c["measured"] - c["expected"]) / c["error"])
    rows = [
        [
            f"{check['mean']:g}",
            str(check["t"]),
            plain(check["measured"], 4),
            plain(check["expected"], 4),
            f"{(check['measured'] - check['expected']) / check['error']:+.1f}",
            plain(exact_variance(rho(check["t"], 0.999)), 4) if check["mean"] == 0 else "",
        ]
        for check in checks
        if check["mean"] in (0, 0.1, 1, 10)
    ]
    return [
        "### Figure 9: simulated",
        "",
        *picture("figure9", "Var of psi and of r psi, simulated"),
        "Expected is no approximation: E[ψ^k] of the weighted sum of squared normals, integrated (`theory.ema_moments`).",
        f"Largest deviation: {abs(worst['measured'] - worst['expected']) / worst['error']:.1f} standard errors.",
        "",
        *table(["mean", "t", "Var[ψ]", "expected", "standard errors", "Theorem 1 at ρ_t"], rows),
        f"{_constant(found)}, for mean 0. As in the paper the rectified variance is nearly constant while ψ's own falls by",
        "orders of magnitude. For a mean of 1 and 10 the theory does not apply (it supposes mean 0): ψ varies less there,",
        "and r_t shortens steps that hardly need it.",
        "",
    ]


def _divergence(found: dict[str, Any]) -> list[str]:
    slopes = found["slopes"]
    rows = [
        [
            f"10^{len(str(n)) - 1}",
            *(plain(found[key][i]) for key in ("square_mean", "levy_mean", "square_variance", "mean", "variance")),
        ]
        for i, n in enumerate(found["n"])
    ]
    return [
        "### t = 1: the moments that do not exist",
        "",
        "1/g² of a normal gradient is Lévy distributed: the mean of n of them is distributed as n times one of them, so that",
        "E[1/g²] and Var[1/g²] are infinite, as the paper says. Medians of 101 samples:",
        "",
        *table(["n", "mean of 1/g²", "theory", "variance of 1/g²", "mean of ψ = 1/|g|", "variance of ψ"], rows),
        f"Growth with n: mean n^{slopes['square_mean']:.2f} (theory 1), variance n^{slopes['square_variance']:.2f} (3), variance of ψ",
        f"n^{slopes['variance']:.2f} (1); the mean of ψ grows as log n.",
        "",
    ]


def _sma(found: dict[str, Any]) -> list[str]:
    dip = found["dip"]
    shown = [t for t in (5, 10, 100, 1000, 6000) if t in found["t"]]
    at = [found["t"].index(t) for t in shown]
    rows = [
        [
            str(found["t"][i]),
            *(plain(found[key][i], 5) for key in ("rho", "matched", "measured", "from_psi")),
            plain(found["rectified_variance"][i]),
        ]
        for i in at
    ]
    return [
        "### The EMA taken for an SMA",
        "",
        "The paper gives the SMA the EMA's centre of mass. The χ² with the EMA's mean and variance has (Σw)² / Σw² degrees of",
        "freedom instead, and that is what the simulation measures and what the EMA's own Var[ψ] asks for:",
        "",
        *table(["t", "ρ_t", "(Σw)² / Σw²", "2 E² / Var measured", "that Var[ψ] asks for", "Var[r_t ψ] / limit"], rows),
        f"At t = 1,000 ρ_t is {plain(dip['rho_1000'], 4)} against {plain(dip['matched_1000'], 4)}. So the exact r_t dips: it is",
        f"{100 * (1 - dip['ratio_1000']):.1f} % too small there, and at most {100 * (1 - dip['ratio']):.1f} % (t = {dip['t']:.0f}, "
        f"{plain(dip['r_t'], 4)} against {plain(dip['r_matched'], 4)}).",
        "Both lengths agree at the start and in the limit, so this matters to nobody's training; the paper does not mention it.",
        "",
    ]


def _early(records: Records, picture: Any) -> list[str]:
    lines = [
        "The paper: a Transformer on IWSLT14 De-En, where Adam without warm-up stalls (figure 1), as its gradients' distribution",
        "is distorted within ten steps (figure 2); Adam-2k (only v moves for 2,000 steps) and Adam-eps repair it, the second",
        "badly (figure 3); BLEU 34.66 for Adam with warm-up, 34.76 for RAdam. Here: a post-norm Transformer of six layers at a",
        f"constant learning rate of {early.LR:g}, on the demo's text and on reversing sequences.",
        "",
        *picture("early", "Loss curves"),
    ]
    for name, title in early.TASKS.items():
        by_method = early.by_method(records, name)
        if not by_method:
            continue
        settings = next(iter(by_method.values()))[0]["settings"]
        lines += [f"**{title[0].upper()}{title[1:]}**, {settings['steps']} steps, tuned T = {settings['warmup']}:", ""]
        rows = []
        for key, runs in by_method.items():
            found = early.summary(runs)
            hold = runs[0]["settings"]["hold"]
            label = early.METHODS[key].label + (f" ({hold} steps of v first)" if hold else "")
            rows.append(
                [
                    label,
                    plain(found["training"]),
                    plain(found["validation"]),
                    plain(found["worst"]),
                    f"{100 * found['accuracy']:.1f} %",
                    *_medians(runs),
                ]
            )
        last = max(
            (int(step) for runs in by_method.values() for r in runs for step in r["result"]["histograms"]), default=1
        )
        headings = ["optimizer", "training loss, end", "validation loss", "worst seed", "accuracy"]
        lines += table([*headings, "median abs. gradient, step 1", "step 10", f"step {last}"], rows)
        lines += [_needs_sentence(by_method), ""]
    lines += [
        "Histograms of the absolute gradients (seed 0), a column a method, a row a task:",
        "",
        *picture("gradients", "Histograms of the absolute gradients"),
        "RAdam's step has no division by sqrt(v) while ρ_t is below the threshold, then one of 1 to 2 % of the learning rate;",
        "r_t reaches 0.1 at about t = 50 and 0.22 at 100, where the untuned linear warm-up is at 0.05: square-root shaped.",
        "",
    ]
    return lines


def _medians(runs: list[dict[str, Any]]) -> list[str]:
    found = next((r["result"]["histograms"] for r in runs if r["result"]["histograms"]), {})
    steps = sorted(found, key=int)
    if not steps:
        return ["-", "-", "-"]
    return [plain(found[step]["median"], 2) if step in found else "-" for step in ("1", "10", steps[-1])]


def _needs_sentence(by_method: dict[str, list[dict[str, Any]]]) -> str:
    loss = {key: early.summary(rows)["validation"] for key, rows in by_method.items()}
    if not {"adam", "radam"} <= set(loss):
        return ""
    gain = loss["adam"] - loss["radam"]
    if gain > 0.1:
        text = f"As in the paper, RAdam trains where Adam without warm-up does not: {plain(gain)} nats lower."
    else:
        text = f"Unlike in the paper, RAdam is not ahead of Adam without warm-up here: {plain(gain)} nats."
    best = min(loss, key=lambda key: loss[key])
    text += (
        f" Lowest is {early.METHODS[best].label}, {plain(loss['radam'] - loss[best])} below RAdam."
        if best != "radam"
        else (" It is the lowest of all.")
    )
    helped = [key for key in ("adam-2k", "adam-eps") if key in loss and loss["adam"] - loss[key] > 0.1]
    labels = " and ".join(early.METHODS[key].label for key in helped)
    return text + (
        f" Of the paper's two repairs {labels} help." if helped else " Neither of the paper's two repairs helps here."
    )


def _robust(records: Records, picture: Any) -> list[str]:
    lines = [
        "The paper: CIFAR10 (ResNet-20) SGD 91.51 %, Adam 90.54 %, RAdam 91.38 %; ImageNet (ResNet-18) 69.86, 66.54, 67.62; One",
        "Billion Word perplexity Adam 36.92, RAdam 35.70; and RAdam's curves over lr in {0.1, 0.03, 0.01, 0.003} lie close",
        "together where Adam's and SGD's do not. Here: cosine decay, final losses on held-back data, mean over seeds. The spread",
        "is the largest less the smallest final loss of a seed over the learning rates; a run that diverged, or ends above",
        "it, counts as a model that knows nothing.",
        "",
        *picture("robustness", "Final losses and curves over learning rates"),
    ]
    for name in choices.names(records):
        of_task = [r for r in records.values() if r["settings"]["task"] == name]
        by_lr = {key: robustness.losses(records, name, key) for key in robustness.OPTIMIZERS}
        lrs = sorted({lr for found in by_lr.values() for lr in found}, reverse=True)
        seeds = len({r["settings"]["seed"] for r in of_task})
        lines += [
            f"### {robustness.TASKS[name]}",
            "",
            f"{of_task[0]['settings']['steps']} steps, {seeds} seeds, chance {plain(of_task[0]['result']['chance'])}; final loss:",
            "",
        ]
        rows = []
        for key, found in by_lr.items():
            paper, every = (robustness.spreads(records, name, key, which) for which in (None, tuple(lrs)))
            rows.append(
                [
                    LABELS[key],
                    *(plain(statistics.fmean(found[lr].values())) if lr in found else "-" for lr in lrs),
                    _spread(paper),
                    _spread(every),
                ]
            )
        lines += table(["", *(f"{lr:g}" for lr in lrs), "spread, the paper's lrs", "spread, all"], rows)
        if name in ("digits", "cifar10"):
            rows = []
            for key in robustness.OPTIMIZERS:
                found = robustness.accuracies(records, name, key)
                rows.append([LABELS[key], *(f"{100 * statistics.fmean(found[lr]):.1f}" for lr in lrs if lr in found)])
            lines += ["Accuracy, %:", "", *table(["", *(f"{lr:g}" for lr in lrs)], rows)]
        blown = {
            key: sum(r["result"]["diverged"] for r in of_task if r["settings"]["optimizer"] == key) for key in by_lr
        }
        if any(blown.values()):
            lines += [
                "Diverged: " + ", ".join(f"{LABELS[key]} {count}" for key, count in blown.items() if count) + ".",
                "",
            ]
        lines += _spread_sentences(records, name, tuple(lrs))
    return lines


def _spread(found: dict[int, float]) -> str:
    if not found:
        return "-"
    return f"{plain(statistics.fmean(found.values()))} ({plain(min(found.values()))} to {plain(max(found.values()))})"


def _spread_sentences(records: Records, name: str, lrs: tuple[float, ...]) -> list[str]:
    sentences = []
    for which, label in ((None, "the paper's learning rates"), (lrs, "all of them")):
        ours = robustness.spreads(records, name, "radam", which)
        for key in ("adam", "sgd"):
            theirs = robustness.spreads(records, name, key, which)
            if not set(ours) & set(theirs):
                continue
            found = robustness.compare(ours, theirs)
            error = f" ± {plain(found['error'], 2)}" if found["error"] == found["error"] else ""
            sentences.append(
                f"- Over {label} RAdam's spread is {robustness.verdict(found)} {LABELS[key]}'s: "
                f"{found['mean']:+.3g}{error}, smaller in {found['smaller']} of {found['seeds']} seeds."
            )
    best = {
        key: max(-statistics.fmean(by_seed.values()) for by_seed in robustness.losses(records, name, key).values())
        for key in robustness.OPTIMIZERS
        if robustness.losses(records, name, key)
    }
    if best:
        text = ", ".join(f"{LABELS[key]} {plain(-value)}" for key, value in best.items())
        sentences.append(f"- At each one's best learning rate: {text}.")
    return [*sentences, ""]


def _choice(records: Records, picture: Any) -> list[str]:
    lines = [
        "The paper rectifies from ρ_t > 4 on with the first-order r_t and steps by the momentum before; torch and the authors'",
        'code from 5 on; `degenerated_to_sgd=False` ("no step") waits. Differences are paired by seed with the default\'s, in',
        "nats; **bold** where beyond 99 % of chance (Student's t), of which one in a hundred comparisons is by chance alone.",
        "",
        *picture("choices", "Differences from the default"),
    ]
    for name in choices.names(records):
        rows = []
        found = choices.table(records, name)
        for row in found:
            rows.append(
                [
                    row["variant"],
                    plain(row["final"], 4),
                    _difference(row["final_difference"], row["variant"]),
                    plain(row["curve"], 4),
                    _difference(row["curve_difference"], row["variant"]),
                    f"{100 * row['accuracy']:.1f} %",
                ]
            )
        settings = next(r["settings"] for r in records.values() if r["settings"]["task"] == name)
        lines += [f"**{robustness.TASKS[name]}**, lr {settings['lr']:g}, {settings['steps']} steps:", ""]
        lines += table(
            ["rectification", "final loss", "difference", "mean of the curve", "difference", "accuracy"], rows
        )
        lines += [_choice_sentence(found), ""]
    return lines


def _difference(found: dict[str, float], variant: str) -> str:
    if variant == choices.DEFAULT:
        return ""
    error = f" ± {plain(found['error'], 2)}" if found["error"] == found["error"] else ""
    text = f"{found['mean']:+.2g}{error}"
    return f"**{text}**" if choices.real(found) else text


def _choice_sentence(found: list[dict[str, Any]]) -> str:
    rows = [row for row in found if row["variant"] not in (choices.DEFAULT, choices.ADAM)]
    if not rows:
        return ""
    real = [row for row in rows if choices.real(row["final_difference"])]
    largest = max(rows, key=lambda row: abs(row["final_difference"]["mean"]))
    text = f"In the final loss the largest difference among RAdams is {largest['final_difference']['mean']:+.2g} ({largest['variant']}). "
    if not real:
        return text + "None is beyond chance: choose by other reasons."
    names = "; ".join(f"{row['variant']} {row['final_difference']['mean']:+.2g}" for row in real)
    return text + f"Beyond chance: {names}."
