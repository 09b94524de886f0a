"""Sizes of models and runs: QUICK to try the pipeline, FULL for two CPU cores, LARGE for a GPU, TINY for tests."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Transformer:
    """Sizes of the demo's GPT; `post_norm` puts the norms after the sums, as in the original Transformer."""

    layers: int = 2
    width: int = 64
    heads: int = 4
    context: int = 32
    batch: int = 8
    post_norm: bool = False
    ms: float = 4.5  # a training step on one core, for the estimate


@dataclass(frozen=True)
class ResNet:
    widths: tuple[int, ...] = (16, 32, 64)
    blocks: int = 1
    batch: int = 64
    augment: bool = False
    ms: float = 6.6


@dataclass(frozen=True)
class Steps:
    """A task's training: how many steps, and how many of them (at the least) a point of its curve is the mean of."""

    robustness: int = 0
    choices: int = 0


@dataclass(frozen=True)
class Sizes:
    """The sizes of a whole run.

    Attributes:
        paths, horizon, samples: of the simulations: paths, steps, and gradients at t = 1.
        text, deep, reverse, digits, cifar10: the tasks' models. `deep` is text in a post-norm Transformer.
        early_steps, hold, warmup: of the Adam's-early-steps part; Adam-2k's steps without a change, and the tuned T.
        steps: of the other parts, by task.
        seeds, early_seeds: runs of each kind.
        lrs: of the robustness part; the paper's four are among them.
    """

    name: str
    paths: int = 5000
    horizon: int = 6000
    samples: int = 10**6
    text: Transformer = field(default_factory=Transformer)
    deep: Transformer = field(default_factory=lambda: Transformer(layers=6, post_norm=True, ms=9.0))
    reverse: Transformer = field(
        default_factory=lambda: Transformer(layers=6, context=24, batch=16, post_norm=True, ms=12.0)
    )
    digits: ResNet = field(default_factory=ResNet)
    cifar10: ResNet = field(default_factory=lambda: ResNet(blocks=3, batch=128, augment=True, ms=900.0))
    early_steps: int = 2200
    hold: int = 2000
    warmup: int = 400
    steps: dict[str, Steps] = field(
        default_factory=lambda: {
            "digits": Steps(330, 330),
            "text": Steps(1000, 1000),
            "deep": Steps(600, 600),
            "cifar10": Steps(390, 0),
        }
    )
    seeds: int = 5
    early_seeds: int = 3
    lrs: tuple[float, ...] = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)

    def model(self, task: str) -> dict[str, Any]:
        """A task's model as plain values, the estimate left out."""
        values = asdict(getattr(self, task))
        values.pop("ms")
        return values


def _quick() -> Sizes:
    return Sizes(
        "quick",
        paths=1000,
        horizon=1500,
        samples=10**5,
        early_steps=200,
        hold=100,
        warmup=50,
        steps={"digits": Steps(42, 42), "text": Steps(60, 60), "deep": Steps(60, 60), "cifar10": Steps(10, 0)},
        seeds=2,
        early_seeds=1,
        lrs=(0.03, 0.003, 0.0003),
    )


def _large() -> Sizes:
    """For a GPU: wider models, longer runs, and real batches."""
    return Sizes(
        "large",
        paths=20_000,
        text=Transformer(layers=6, width=256, heads=8, context=256, batch=32, ms=12.0),
        deep=Transformer(layers=12, width=256, heads=8, context=256, batch=32, post_norm=True, ms=22.0),
        reverse=Transformer(layers=12, width=256, heads=8, context=64, batch=64, post_norm=True, ms=20.0),
        digits=ResNet(blocks=3, batch=64, ms=15.0),
        cifar10=ResNet(blocks=3, batch=128, augment=True, ms=15.0),  # the paper's ResNet-20
        early_steps=6000,
        hold=2000,
        warmup=1000,
        steps={
            "digits": Steps(630, 630),
            "text": Steps(3000, 3000),
            "deep": Steps(3000, 3000),
            "cifar10": Steps(7800, 0),
        },
    )


def _tiny() -> Sizes:
    def small(post_norm: bool = False) -> Transformer:
        return Transformer(layers=1, width=8, heads=2, context=8, batch=2, post_norm=post_norm, ms=1.0)

    return Sizes(
        "tiny",
        paths=50,
        horizon=12,
        samples=1000,
        text=small(),
        deep=small(True),
        reverse=small(True),
        digits=ResNet(widths=(4,), batch=32, ms=2.0),
        cifar10=ResNet(widths=(4,), batch=8, augment=True, ms=2.0),
        early_steps=8,
        hold=2,
        warmup=4,
        steps={"digits": Steps(2, 2), "text": Steps(2, 2), "deep": Steps(2, 2), "cifar10": Steps(2, 0)},
        seeds=2,
        early_seeds=1,
        lrs=(0.1, 0.01),
    )


SIZES = {"full": Sizes("full"), "quick": _quick(), "large": _large(), "tiny": _tiny()}
