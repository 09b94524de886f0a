"""Draws the figures, as PNG beside the results, from the JSON alone. A part without results gets no figure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.paper import choices, early, robustness
from bench.paper.training import LABELS
from bench.paper.units import Store
from bench.report.plot_style import INK, QUIET
from radam_fused.options import GROUP_DEFAULTS

RED, BLUE, GREEN, YELLOW, GREY = "#d1495b", "#3d6fb4", "#4f9d69", "#e0a030", "#8d99ae"
OPTIMIZER = {"sgd": GREY, "adam": BLUE, "radam": RED}
METHOD = {
    "adam": ("#1b1f27", "-"),
    "adam-warmup": (BLUE, "-"),
    "adam-untuned": (BLUE, ":"),
    "adam-2k": (GREEN, "-"),
    "adam-eps": (YELLOW, "-"),
    "radam": (RED, "-"),
    "radam-exact": (RED, ":"),
}
LOSS = "training loss, nats, logarithmic"
SHARE = "share of the gradients, per quarter of a decade"
FINAL = "final loss, nats, logarithmic"
DEFAULT_THRESHOLD = GROUP_DEFAULTS["rho_threshold"]
PAPERS_THRESHOLD = 4.0
STYLE = {
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.edgecolor": QUIET,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
}


def draw(store: Store) -> list[str]:
    """Draws the figures for which there are results; returns the names of the files."""
    import matplotlib

    matplotlib.use("Agg")
    theory = {name: record["result"] for name, record in store.records("theory").items()}
    made = []
    for name, needs, picture in (
        ("lengths", {"lengths"}, _lengths),
        ("figure8", {"figure8"}, _figure8),
        ("figure9", {"figure9"}, _figure9),
        ("approximation", {"sma", "divergence"}, _approximation),
    ):
        if needs <= set(theory):
            made.append(picture(theory, store.folder / f"{name}.png"))
    for part, pictures in (
        ("early", {"early": _early, "gradients": _gradients}),
        ("robustness", {"robustness": _robustness}),
        ("choices", {"choices": _choices}),
    ):
        records = store.records(part)
        made += [picture(records, store.folder / f"{name}.png") for name, picture in pictures.items() if records]
    return made


@contextmanager
def _panels(path: Path, rows: int, columns: int, size: tuple[float, float], **options: Any) -> Iterator[Any]:
    from matplotlib import pyplot as plt

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)
        yield axes
        figure.savefig(path, dpi=110, metadata={"Software": None})
        plt.close(figure)


def _lengths(theory: dict[str, Any], path: Path) -> str:
    with _panels(path, 1, 2, (9, 3.2)) as axes:
        left, right = axes[0]
        for beta2, colour in zip(theory["lengths"], (GREY, GREEN, RED, BLUE), strict=False):
            row = theory["lengths"][beta2]
            left.loglog(row["t"], row["rho"], color=colour, label=f"β2 = {beta2}")
        for threshold, line, whose in (
            (DEFAULT_THRESHOLD, "--", "the default's"),
            (PAPERS_THRESHOLD, ":", "the paper's"),
        ):
            left.axhline(
                threshold, color=INK, linewidth=0.8, linestyle=line, label=f"rectified above {threshold:g}, {whose}"
            )
        left.set(title="The length of the average", xlabel="step t", ylabel="ρ_t, steps", ylim=(0.5, 4e6))
        left.legend()
        row = theory["lengths"]["0.999"]
        for key, label, colour, line in (
            ("first_order", "r_t, first order", RED, "-"),
            ("exact", "r_t, exact", RED, ":"),
            ("linear_warmup", "untuned linear warm-up", BLUE, "-"),
        ):
            points = [(t, value) for t, value in zip(row["t"], row[key], strict=True) if value is not None]
            right.loglog(*zip(*points, strict=True), color=colour, linestyle=line, label=label)
        right.set(title="Warm-ups, β2 = 0.999", xlabel="step t", ylabel="factor of the learning rate", ylim=(4e-4, 1.3))
        right.legend()
    return path.name


def _figure8(theory: dict[str, Any], path: Path) -> str:
    found = theory["figure8"]
    nu, exact, first = found["nu"], found["exact"], found["first_order"]
    with _panels(path, 1, 2, (9, 3.2)) as axes:
        left, right = axes[0]
        left.loglog(nu, exact, color=RED, label="exact (Theorem 1)")
        left.loglog(nu, first, color=BLUE, linestyle="--", label="first order (equation 6)")
        left.set(title="The variance, the paper's figure 8", xlabel="degrees of freedom ν", ylabel="Var[ψ] / τ²")
        left.legend()
        right.loglog(nu, [b - a for a, b in zip(exact, first, strict=True)], color=GREY, label="absolute error")
        right.loglog(nu, [b / a - 1 for a, b in zip(exact, first, strict=True)], color=RED, label="relative error")
        right.set(
            title="The first order is always too large",
            xlabel="degrees of freedom ν",
            ylabel="error: absolute in τ², or relative",
        )
        right.legend()
    return path.name


def _figure9(theory: dict[str, Any], path: Path) -> str:
    found = theory["figure9"]
    at = found["t"]
    means = sorted({check["mean"] for check in found["checks"]})
    with _panels(path, 2, 3, (10, 5.2), sharex=True) as axes:
        for panel, mean, variance in zip(axes.flat, means, found["variance"], strict=True):
            panel.loglog(at, variance, color=GREY, label="Var[ψ], simulated")
            for key, colour, label in (("r_first_order", RED, "first order"), ("r_exact", BLUE, "exact")):
                rectified = [
                    (t, r * r * value) for t, r, value in zip(at, found[key], variance, strict=True) if r is not None
                ]
                panel.loglog(*zip(*rectified, strict=True), color=colour, label=f"Var[r ψ], {label}")
            if mean == 0:
                panel.loglog(at, found["theorem"], color=INK, linestyle=":", linewidth=1, label="Theorem 1 at ρ_t")
                panel.legend()
            panel.set_title(f"g ~ N({mean:g}, 1)")
            panel.set_ylabel("variance of ψ = 1/√v, or r ψ")
        for panel in axes[1]:
            panel.set_xlabel("step t")
    return path.name


def _approximation(theory: dict[str, Any], path: Path) -> str:
    sma, divergence = theory["sma"], theory["divergence"]
    with _panels(path, 1, 2, (9, 3.2)) as axes:
        left, right = axes[0]
        for key, label, colour in (
            ("square_mean", "mean of 1/g²", RED),
            ("square_variance", "variance of 1/g²", BLUE),
            ("mean", "mean of ψ = 1/|g|", GREEN),
            ("variance", "variance of ψ", YELLOW),
        ):
            line = "--" if key == "variance" else "-"  # dashed, since it nearly covers the mean of 1/g²
            points = divergence[key]
            left.loglog(divergence["n"], points, color=colour, linestyle=line, label=label, marker="o", markersize=3)
        left.set(title="t = 1: sample moments never settle", xlabel="samples", ylabel="sample moment, for g ~ N(0, 1)")
        left.legend()

        def relative(key: str) -> list[float]:
            return [value / base for value, base in zip(sma[key], sma["matched"], strict=True)]

        right.axhline(1, color=QUIET, linewidth=0.8)
        right.semilogx(sma["t"], relative("rho"), color=RED, label="ρ_t (centre of mass)")
        right.semilogx(sma["t"], relative("from_psi"), color=INK, label="what the EMA's Var[ψ] asks for")
        right.semilogx(sma["t"], relative("measured"), "o", color=GREY, markersize=3, label="2 E² / Var, measured")
        right.set(title="Which length the average has", xlabel="step t", ylabel="degrees of freedom / ((Σw)² / Σw²)")
        right.legend()
    return path.name


def _plain_ticks(panel: Any) -> None:
    """0.1, 1 and 10 on a logarithmic axis of losses, and more between them where it is short."""
    from matplotlib import ticker

    low, high = panel.get_ylim()
    panel.yaxis.set_major_locator(ticker.LogLocator(10, subs=(1.0, 2.0, 3.0, 4.0, 5.0) if high < 30 * low else (1.0,)))
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.yaxis.set_minor_formatter(ticker.NullFormatter())


def _mean_curve(rows: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Steps, and losses averaged over the seeds, up to the step that all of them reached."""
    curves = [row["result"]["curve"] for row in rows]
    losses = [list(values) for values in zip(*(curve["loss"] for curve in curves), strict=False)]
    means = [math.nan if None in values else statistics.fmean(values) for values in losses]
    return [(i + 0.5) * curves[0]["width"] for i in range(len(means))], means


def _early(records: dict[str, Any], path: Path) -> str:
    names = [name for name in early.TASKS if early.by_method(records, name)]
    with _panels(path, 1, len(names), (5.2 * len(names), 3.8)) as axes:
        for panel, name in zip(axes[0], names, strict=True):
            for key, rows in early.by_method(records, name).items():
                colour, line = METHOD[key]
                width = 3.0 if key == "adam" else 1.4  # Adam-eps may cover it
                label = early.METHODS[key].label
                panel.plot(*_mean_curve(rows), color=colour, linestyle=line, linewidth=width, label=label)
            panel.set(title=early.TASKS[name].capitalize(), xlabel="step", ylabel=LOSS, yscale="log")
            _plain_ticks(panel)
        axes[0][0].legend()
    return path.name


def _gradients(records: dict[str, Any], path: Path) -> str:
    """The distribution of log10 |g| over the steps: a column per method, a row per task."""
    names = [name for name in early.TASKS if early.by_method(records, name)]
    keys = [key for key in early.METHODS if any(key in early.by_method(records, name) for name in names)]
    with _panels(path, len(names), len(keys), (1.75 * len(keys), 2.6 * len(names)), sharey=True) as axes:
        for line, name in zip(axes, names, strict=True):
            by_method = early.by_method(records, name)
            for panel, key in zip(line, keys, strict=True):
                found = next(
                    (r["result"]["histograms"] for r in by_method.get(key, []) if r["result"]["histograms"]), {}
                )
                steps = sorted(found, key=int)
                panel.grid(False)
                if steps:
                    shares = [found[step]["shares"] for step in steps]
                    image = panel.imshow(
                        list(zip(*shares, strict=True)),
                        origin="lower",
                        aspect="auto",
                        cmap="magma_r",
                        extent=(-0.5, len(steps) - 0.5, early.LOWEST, early.HIGHEST),
                        vmin=0,
                        vmax=0.2,
                    )
                    panel.set_xticks(range(len(steps)), steps, rotation=90, fontsize=6.5)
                title = early.METHODS[key].label.replace(", ", ",\n", 1)
                panel.set_title(title.replace("warm-up ", "warm-up\n", 1), fontsize=7)
            line[0].set_ylabel(f"{early.TASKS[name]}\nlog10 |g|")
        for panel in axes[-1]:
            panel.set_xlabel("step", fontsize=7)
        bar = axes[0][0].figure.colorbar(image, ax=axes, shrink=0.5, pad=0.01, extend="max")
        bar.set_label(SHARE, fontsize=7)
    return path.name


def _robustness(records: dict[str, Any], path: Path) -> str:
    from matplotlib import colormaps

    names = choices.names(records)
    with _panels(path, len(names), 4, (12, 2.7 * len(names))) as axes:
        for line, name in zip(axes, names, strict=True):
            chance = max(r["result"]["chance"] for r in records.values() if r["settings"]["task"] == name)
            for key, colour in OPTIMIZER.items():
                by_lr = robustness.losses(records, name, key)
                lrs = list(by_lr)
                means = [statistics.fmean(by_lr[lr].values()) for lr in lrs]
                line[0].semilogx(lrs, means, color=colour, marker="o", markersize=3, label=LABELS[key])
                low, high = ([f(by_lr[lr].values()) for lr in lrs] for f in (min, max))
                line[0].fill_between(lrs, low, high, color=colour, alpha=0.15, linewidth=0)
            line[0].set(
                title=f"{robustness.SHORT[name]}: held-back data", xlabel="learning rate", ylabel=FINAL, yscale="log"
            )
            _plain_ticks(line[0])
            line[0].legend(fontsize=7)
            curves = [_mean_curve([r])[1] for r in records.values() if r["settings"]["task"] == name]
            least = min(loss for curve in curves for loss in curve if loss > 0)
            for panel, key in zip(line[1:], OPTIMIZER, strict=True):
                lrs = list(robustness.losses(records, name, key))
                for i, lr in enumerate(lrs):
                    rows = [
                        r
                        for r in records.values()
                        if (r["settings"]["task"], r["settings"]["optimizer"], r["settings"]["lr"]) == (name, key, lr)
                    ]
                    colour = colormaps["viridis"](i / max(1, len(lrs) - 1))
                    paper = lr in robustness.PAPER_LRS
                    steps, losses = _mean_curve(rows)
                    panel.plot(steps, losses, color=colour, linewidth=1.5 if paper else 0.8, label=f"{lr:g}")
                panel.set(title=LABELS[key], xlabel="step", ylabel=LOSS, yscale="log")
                panel.set_ylim(least / 1.3, 1.25 * chance)
                _plain_ticks(panel)
            line[3].legend(fontsize=6.5, ncols=2, title="learning rate", title_fontsize=6.5)
    return path.name


def _choices(records: dict[str, Any], path: Path) -> str:
    names = choices.names(records)
    with _panels(path, 1, len(names), (4.2 * len(names), 3.2), sharey=True) as axes:
        for panel, name in zip(axes[0], names, strict=True):
            rows = [
                row for row in choices.table(records, name) if row["variant"] not in (choices.DEFAULT, choices.ADAM)
            ]
            for place, row in enumerate(reversed(rows)):
                for key, colour, above in (("final_difference", RED, 0.12), ("curve_difference", BLUE, -0.12)):
                    found = row[key]
                    error = found["error"] if math.isfinite(found["error"]) else 0.0
                    panel.errorbar(found["mean"], place + above, xerr=2 * error, color=colour, fmt="o", markersize=3.5)
            panel.axvline(0, color=INK, linewidth=0.8)
            panel.set_yticks(range(len(rows)), [row["variant"] for row in reversed(rows)])
            panel.set_title(robustness.SHORT[name])
            panel.set_xlabel("loss less the default's; red: final,\nblue: the whole curve's mean; ± 2 SE", fontsize=7.5)
    return path.name
