"""The picture of a comparison: the two loss curves, their difference, the optimizer's time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from comparison import EARLY_STEPS

if TYPE_CHECKING:
    from comparison import Comparison

TORCH, FUSED, GREY = "#7fb3d8", "#b3361b", "#5f6670"
EQUAL = 3e-8
"""Where a difference of zero is drawn: below the last digit of a loss in float32."""

STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e6e9",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.framealpha": 0.9,
    "legend.edgecolor": "white",
    "legend.fontsize": 9,
}


def draw(comparison: Comparison, png: Path) -> None:
    """Write the picture."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(11, 5.6), layout="constrained")
        grid = figure.add_gridspec(2, 2, width_ratios=(1.5, 1), height_ratios=(2.2, 1))
        losses = figure.add_subplot(grid[0, 0])
        _losses(losses, comparison)
        _differences(figure.add_subplot(grid[1, 0], sharex=losses), comparison)
        losses.tick_params(labelbottom=False)
        _optimizer_time(figure.add_subplot(grid[:, 1]), comparison)
        run = comparison.fused
        figure.suptitle(
            f"A byte-level GPT of {run.parameters:,} parameters in {run.tensors} tensors, trained twice from one seed",
            fontsize=12,
        )
        figure.savefig(png, dpi=150)
        plt.close(figure)


def _losses(ax: Axes, comparison: Comparison) -> None:
    """Torch's curve broad and light, the fused one thin and dark on it."""
    for run, colour, width, size in ((comparison.torch, TORCH, 4.5, 9), (comparison.fused, FUSED, 1.3, 4)):
        steps = np.arange(1, len(run.losses) + 1)
        ax.plot(steps, _smooth(run.losses), color=colour, linewidth=width, label=run.name)
        validation = list(run.validation), list(run.validation.values())
        ax.plot(*validation, "o", color=colour, markersize=size, markeredgecolor="white", markeredgewidth=0.6)
    ax.plot([], [], "o", color=GREY, markersize=5, label="dots: text held back for validation")
    ax.axhline(comparison.unigram, color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="frequencies of bytes alone")
    ax.set_title("Training loss")
    ax.set_ylabel("nats per byte")
    ax.legend(loc="upper right")


def _differences(ax: Axes, comparison: Comparison) -> None:
    """What rounding has grown to, on a logarithmic axis, and what is allowed at the start."""
    differences = np.array(comparison.differences)
    steps = np.arange(1, len(differences) + 1)
    ax.semilogy(steps, np.maximum(differences, EQUAL), ".", color=GREY, markersize=2.5)
    early = [1, min(EARLY_STEPS, len(differences))]
    allowed = [comparison.early_tolerance] * 2
    ax.plot(early, allowed, color=FUSED, linewidth=1.5, label=f"allowed in the first {EARLY_STEPS} steps")
    ax.set_ylim(EQUAL / 3, 300)
    ticks = [EQUAL, 1e-6, 1e-4, 1e-2, 1]
    ax.set_yticks(ticks, ["equal", *(f"$10^{{{round(np.log10(tick))}}}$" for tick in ticks[1:])])
    ax.minorticks_off()
    ax.set_title("Their difference: rounding, magnified by training")
    ax.set_ylabel("nats per byte,\nlogarithmic")
    ax.set_xlabel("step")
    ax.legend(loc="upper right")


def _optimizer_time(ax: Axes, comparison: Comparison) -> None:
    """Every step a dot, every median a line, on a logarithmic axis."""
    for run, colour in ((comparison.torch, TORCH), (comparison.fused, FUSED)):
        steps = np.arange(1, len(run.optimizer_ms) + 1)
        median = run.median_optimizer_ms
        ax.plot(steps, run.optimizer_ms, ".", color=colour, markersize=3, alpha=0.5)
        ax.axhline(median, color=colour, linewidth=2, label=f"{run.name}: median {median:.3g} ms")
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.set_ylim(low, 4 * high)  # the legend covers no dot
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set_title(f"Time of optimizer.step(): speed-up {comparison.speedup:.2g}x")
    ax.set_ylabel("ms per step, logarithmic")
    ax.set_xlabel("step")
    ax.legend(loc="upper right")


def _smooth(losses: list[float]) -> np.ndarray:
    """Mean over a fortieth of the run around each step, over less of it at both ends."""
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    steps = np.arange(len(losses))
    reach = np.minimum(len(losses) // 80, steps)  # as far ahead as back: at the start the curve is steep
    first, end = steps - reach, np.minimum(steps + reach + 1, len(losses))
    return (sums[end] - sums[first]) / (end - first)
