"""Times whole training steps of a model, and the optimizer's share of them.

Every optimizer trains its own copy of the model, from the same parameters and on the same batch. A round takes one
training step of each, in a new random order: clear the gradients, forward, backward, step. The optimizer's part is the
time in `zero_grad` and `step`. The backward pass leaves the caches as it does in any training, so they need no
preparation.

Correctness: the losses of every candidate that computes RAdam must be those of torch.optim.RAdam, step by step.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bench.harness.machine import available_gib, free_garbage
from bench.harness.measure import Progress, no_collection, no_progress, why_skipped
from bench.harness.plan import Plan
from bench.optimizers.baselines import BASELINES, HYPERPARAMETERS, Skipped
from bench.optimizers.candidates import FIRST_STEPS
from bench.optimizers.time_limit import time_limit
from examples.gpt import GPT, GPTConfig

TOLERANCE = 1e-3
"""Largest difference of a loss from that of torch.optim.RAdam, relative to it."""
BEFORE = "radam-foreach"
"""The optimizer that FusedRAdam replaces; ratios are taken against it."""
TRAINED_BASELINES = (BEFORE, "radam-single", "adamw-fused")
"""The baselines that train. Only a few, as each needs its own copy of the model."""
OURS = {"fused-flat": True, "fused": False}
"""The candidates that are FusedRAdam, with the value of ``flatten``."""


@dataclass(frozen=True)
class Model:
    """A model and the size of its batch.

    Attributes:
        name: what ``--cases`` calls it.
        title: what tables call it.
        config: of the network.
        batch, length: sequences per step, and tokens of each.
    """

    name: str
    title: str
    config: GPTConfig
    batch: int
    length: int


MODELS = {
    model.name: model
    for model in (
        Model("train-gpt2", "GPT-2 124M, 1 × 128 tokens a step", GPTConfig(12, 768, 12, 1024, 50257), 1, 128),
        Model("train-small", "GPT of 0.8M, 4 × 64 tokens a step", GPTConfig(), 4, 64),
        # For the tests: takes milliseconds.
        Model("train-tiny", "a GPT of two blocks", GPTConfig(2, 16, 2, 16, 32), 1, 8),
    )
}
SHOWN = ["train-gpt2", "train-small"]


def chosen(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits ``--cases`` into models and other names; "training", "default" and "all" stand for those of `SHOWN`."""
    everything = {"training", "default", "all"} & {*names}
    models = [name for name in MODELS if name in names or (everything and name in SHOWN)]
    return models, [name for name in names if name not in MODELS and name != "training"]


@dataclass
class Training:
    """One optimizer with its model and its times.

    Attributes:
        label: for tables.
        whole, part: seconds of each timed step, and of the optimizer's part of it.
        losses: of all steps, the first ones included.
    """

    label: str
    model: GPT
    optimizer: torch.optim.Optimizer
    whole: list[float] = field(default_factory=list)
    part: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
        """Takes one training step; returns its seconds and those of the optimizer's part."""
        began = time.perf_counter_ns()
        self.optimizer.zero_grad()
        cleared = time.perf_counter_ns()
        loss = self.model.loss(inputs, targets)
        loss.backward()
        computed = time.perf_counter_ns()
        self.optimizer.step()
        ended = time.perf_counter_ns()
        self.losses.append(loss.item())
        return (ended - began) * 1e-9, (ended - computed + cleared - began) * 1e-9


@dataclass
class Trained:
    """The results of the rounds over a model.

    Attributes:
        trainings: by optimizer.
        skipped: by optimizer, why it did not run.
    """

    model: Model
    parameters: int
    tensors: int
    trainings: dict[str, Training] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def differences(self) -> dict[str, float]:
        """For each RAdam, the difference of its losses from torch's; empty where torch's did not run."""
        torchs = self.trainings.get(BEFORE)
        if torchs is None:
            return {}
        same = [name for name in self.trainings if name in OURS or (name in BASELINES and BASELINES[name].same_update)]
        return {name: difference(self.trainings[name].losses, torchs.losses) for name in same if name != BEFORE}

    @property
    def right(self) -> bool | None:
        """Whether the losses agree and the model learned; None where there is nothing to compare."""
        found = self.differences()
        if not found:
            return None
        losses = self.trainings[BEFORE].losses
        return losses[-1] < losses[0] and max(found.values()) <= TOLERANCE


def difference(losses: Sequence[float], expected: Sequence[float]) -> float:
    """The largest difference, relative to the expected loss; infinite where a loss is NaN."""
    pairs = zip(losses, expected, strict=True)
    found = [abs(a - b) / abs(b) if a == a else float("inf") for a, b in pairs]
    return max(found)


def _ours(flatten: bool) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    from radam_fused import FusedRAdam

    return lambda params: FusedRAdam(params, backend="cpu", flatten=flatten, **HYPERPARAMETERS)


def _start(model: Model, name: str, tensors: int) -> Training:
    """An optimizer with its own copy of the model; raises `Skipped`."""
    torch.manual_seed(0)
    network = GPT(model.config)
    params = list(network.parameters())
    if name in OURS:
        return Training("FusedRAdam, flatten" if OURS[name] else "FusedRAdam", network, _ours(OURS[name])(params))
    baseline = BASELINES[name]
    baseline.check(tensors, "cpu")
    return Training(baseline.label, network, baseline.make(params))


def train(model: Model, baselines: Sequence[str], plan: Plan, progress: Progress = no_progress) -> Trained:
    """Trains the model with FusedRAdam and with those of the baselines that are in `TRAINED_BASELINES`."""
    baselines = [name for name in baselines if name in TRAINED_BASELINES]
    shapes = [p.shape for p in GPT(model.config).parameters()]
    elements = sum(shape.numel() for shape in shapes)
    found = Trained(model, elements, len(shapes))
    inputs, targets = batch_of(model)
    for place, name in enumerate([*OURS, *baselines]):
        progress("first steps", place, len(OURS) + len(baselines))
        free, needed = available_gib(), 4 * 6 * elements / 2**30  # p, g, m, v, and two arrays for temporaries
        try:
            if free is not None and needed > free:
                raise Skipped(f"needs about {needed:.1f} GiB of memory, {free:.1f} are free")
            with time_limit((BASELINES[name].setup or {}).get("cpu") if name in BASELINES else None):
                training = _start(model, name, len(shapes))
                for _ in range(FIRST_STEPS):
                    training.step(inputs, targets)
        except Exception as error:  # a baseline's failure is a line in the report, not the end of the run
            found.skipped[name] = why_skipped(error)
            if name in OURS and found.skipped[name].startswith("failed"):
                raise
        else:
            found.trainings[name] = training
    _rounds(found, inputs, targets, plan, progress)
    return found


def batch_of(model: Model) -> tuple[Tensor, Tensor]:
    """One batch, which all steps train on: the time of a step does not depend on its tokens."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(model.config.vocabulary, (model.batch, model.length + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def _rounds(found: Trained, inputs: Tensor, targets: Tensor, plan: Plan, progress: Progress) -> None:
    order = list(found.trainings)
    shuffle = random.Random(plan.seed).shuffle
    rounds, done, taken = plan.count(1.0), 0, 0
    free_garbage()
    with no_collection():
        while taken < rounds:
            began = time.monotonic()
            shuffle(order)
            for name in order:
                training = found.trainings[name]
                whole, part = training.step(inputs, targets)
                training.whole.append(whole)
                training.part.append(part)
                done += 1
                progress("rounds", done, rounds * len(order))
            taken += 1
            if taken == 1:
                rounds = plan.count(max(time.monotonic() - began, 1e-6))
    progress("rounds", done, done)
