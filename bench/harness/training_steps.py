"""Whole training steps of a model, and the optimizer's share of them.

Every optimizer trains a model of its own, from the same parameters over the same batches. A round takes one training
step of each, in an order drawn anew: gradients cleared, forward, backward, step. The optimizer's part is the time in
`step` and in clearing the gradients, which some do in one call and others not at all; the caches hold what the backward
pass left there, so nothing stands for anything here.

Correctness: the losses of RAdam's contestants have to be those of torch.optim.RAdam, step by step.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bench.harness.interleave import Plan, Progress
from bench.harness.machine import available_gib, free_garbage
from bench.optimizers.baselines import HYPERPARAMETERS, PEERS, Absent, reason
from bench.optimizers.candidates import FIRST_STEPS
from bench.optimizers.time_limit import TimeUp, time_limit
from examples.gpt import GPT, GPTConfig

TOLERANCE = 1e-3
"""Largest difference of a loss from that of torch.optim.RAdam, relative to it."""
BEFORE = "radam-foreach"
"""What FusedRAdam takes the place of."""
PEERS_TRAINED = (BEFORE, "radam-single", "adamw-fused")
"""Those of the peers that train: each holds a model of its own, and the rest of a step is the same for all."""
OURS = {"fused-flat": True, "fused": False}
"""FusedRAdam's forms: whether with ``flatten``."""


@dataclass(frozen=True)
class Model:
    """What is trained.

    Attributes:
        name: what ``--cases`` calls it.
        title: what tables call it.
        config: of the network.
        batch, length: sequences a step, and tokens of each.
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
        # Everything a run does, in a moment: for the tests.
        Model("train-tiny", "a GPT of two blocks", GPTConfig(2, 16, 2, 16, 32), 1, 8),
    )
}
SHOWN = ["train-gpt2", "train-small"]


def chosen(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The models among names of cases ("training" and "default" stand for those of `SHOWN`), and the other names."""
    everybody = {"training", "default", "all"} & {*names}
    models = [name for name in MODELS if name in names or (everybody and name in SHOWN)]
    return models, [name for name in names if name not in MODELS and name != "training"]


@dataclass
class Training:
    """One optimizer, its model, and what its steps took.

    Attributes:
        label: for tables.
        whole, part: seconds of each timed step, and of the optimizer's part in it.
        losses: of all steps, the first ones included.
    """

    label: str
    model: GPT
    optimizer: torch.optim.Optimizer
    whole: list[float] = field(default_factory=list)
    part: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
        """One training step; its seconds, and those of the optimizer's part."""
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
    """What the rounds over a model found.

    Attributes:
        trainings: by optimizer.
        absent: by optimizer, why it did not take part.
    """

    model: Model
    parameters: int
    tensors: int
    trainings: dict[str, Training] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def differences(self) -> dict[str, float]:
        """How far the losses of RAdam's contestants went from torch's; empty where torch's did not take part."""
        torchs = self.trainings.get(BEFORE)
        if torchs is None:
            return {}
        same = [name for name in self.trainings if name in OURS or (name in PEERS and PEERS[name].same_update)]
        return {name: difference(self.trainings[name].losses, torchs.losses) for name in same if name != BEFORE}

    @property
    def right(self) -> bool | None:
        """Whether losses agree and the model learned; None where there is nothing to compare with."""
        found = self.differences()
        if not found:
            return None
        losses = self.trainings[BEFORE].losses
        return losses[-1] < losses[0] and max(found.values()) <= TOLERANCE


def difference(losses: Sequence[float], expected: Sequence[float]) -> float:
    """The largest, relative to what is expected; infinite where a loss is no number."""
    pairs = zip(losses, expected, strict=True)
    found = [abs(a - b) / abs(b) if a == a else float("inf") for a, b in pairs]
    return max(found)


def _ours(flatten: bool) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    from radam_fused import FusedRAdam

    return lambda params: FusedRAdam(params, backend="cpu", flatten=flatten, **HYPERPARAMETERS)


def _start(model: Model, name: str, tensors: int) -> Training:
    """An optimizer over a model of its own; raises `Absent`."""
    torch.manual_seed(0)
    network = GPT(model.config)
    params = list(network.parameters())
    if name in OURS:
        return Training("FusedRAdam, flatten" if OURS[name] else "FusedRAdam", network, _ours(OURS[name])(params))
    peer = PEERS[name]
    peer.check(tensors, "cpu")
    try:
        return Training(peer.label, network, peer.make(params))
    except Absent:
        raise
    except Exception as error:  # one peer's failure is a line in the report, not the end of the run
        raise Absent(f"failed: {reason(error)}") from error


def train(
    model: Model, peers: Sequence[str], plan: Plan, progress: Progress = lambda doing, done, total: None
) -> Trained:
    """Trains the model with FusedRAdam and with those of the peers that are in `PEERS_TRAINED`."""
    peers = [name for name in peers if name in PEERS_TRAINED]
    shapes = [p.shape for p in GPT(model.config).parameters()]
    elements = sum(shape.numel() for shape in shapes)
    found = Trained(model, elements, len(shapes))
    inputs, targets = _batch(model)
    for place, name in enumerate([*OURS, *peers]):
        progress("first steps", place, len(OURS) + len(peers))
        free, needed = available_gib(), 4 * 6 * elements / 2**30  # p, g, m, v and as much for what passes by
        try:
            if free is not None and needed > free:
                raise Absent(f"needs about {needed:.1f} GiB of memory, {free:.1f} are free")
            with time_limit((PEERS[name].setup or {}).get("cpu") if name in PEERS else None):
                training = _start(model, name, len(shapes))
                for _ in range(FIRST_STEPS):
                    training.step(inputs, targets)
        except (Absent, TimeUp) as why:
            found.absent[name] = str(why)
        except Exception as error:
            if name in OURS:
                raise
            found.absent[name] = f"failed: {reason(error)}"
        else:
            found.trainings[name] = training
    _rounds(found, inputs, targets, plan, progress)
    return found


def _batch(model: Model) -> tuple[Tensor, Tensor]:
    """One batch, learnt by heart: what is timed does not depend on its tokens."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(model.config.vocabulary, (model.batch, model.length + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def _rounds(found: Trained, inputs: Tensor, targets: Tensor, plan: Plan, progress: Progress) -> None:
    order = list(found.trainings)
    shuffle = random.Random(plan.seed).shuffle
    rounds, done, taken = plan.rounds_for(1.0), 0, 0
    free_garbage()
    gc.disable()
    try:
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
                rounds = plan.rounds_for(max(time.monotonic() - began, 1e-6))
    finally:
        gc.enable()
    progress("rounds", done, done)
