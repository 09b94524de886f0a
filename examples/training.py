"""One training run: what is trained, how, and what is measured on the way.

The optimizer comes in as a function, so that two runs differ in nothing else: the same seed gives
the same first weights, and a generator of its own gives the same batches in the same order.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from corpus import Corpus
from gpt import GPT, GPTConfig

MakeOptimizer = Callable[..., torch.optim.Optimizer]
"""Called as torch.optim.RAdam is: ``(groups, lr=..., betas=..., decoupled_weight_decay=True)``."""


class Diverged(RuntimeError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Settings:
    """The settings of a run, except for the optimizer."""

    model: GPTConfig = field(default_factory=GPTConfig)
    steps: int = 1200
    batch: int = 8
    lr: float = 4e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.1
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    validations: int = 10
    validation_windows: int = 128

    @property
    def validated_steps(self) -> set[int]:
        """The steps after which the validation loss is measured: evenly spaced, the last one among them."""
        return {self.steps * k // self.validations for k in range(1, self.validations + 1)}


@dataclass
class Run:
    """What one run measured."""

    name: str
    parameters: int = 0
    tensors: int = 0
    losses: list[float] = field(default_factory=list)
    optimizer_ms: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    validation: dict[int, float] = field(default_factory=dict)

    @property
    def final_loss(self) -> float:
        """Mean training loss of the last 50 steps: one batch alone says little."""
        return statistics.fmean(self.losses[-50:])

    @property
    def final_validation(self) -> float:
        """Validation loss after the last step."""
        return list(self.validation.values())[-1]

    @property
    def median_optimizer_ms(self) -> float:
        """Milliseconds a step in the optimizer."""
        return statistics.median(self.optimizer_ms)

    @property
    def optimizer_share(self) -> float:
        """The optimizer's part of a whole training step."""
        return self.median_optimizer_ms / statistics.median(self.step_ms)

    @property
    def seconds(self) -> float:
        """Time of all steps together, validation not counted."""
        return sum(self.step_ms) / 1e3


OnStep = Callable[[Run], None]
"""Called after every step with the run that made it."""


class Clock:
    """Milliseconds, read when the device has done all its work."""

    def __init__(self, device: str) -> None:
        self.gpu = device if device.startswith("cuda") else None

    def __call__(self) -> float:
        if self.gpu is not None:
            torch.cuda.synchronize(self.gpu)
        return time.perf_counter() * 1e3


class Training:
    """A model in training; ``step`` trains it for one step.

    The learning rate falls along a cosine to nothing and needs no warm-up: RAdam's rectification is one, of about
    ``1 / (1 - betas[1])`` steps, which is why a run this short takes 0.99.
    """

    def __init__(self, name: str, make_optimizer: MakeOptimizer, settings: Settings, corpus: Corpus) -> None:
        torch.manual_seed(settings.seed)
        self.model = GPT(settings.model).to(settings.device, getattr(torch, settings.dtype))
        self.optimizer = make_optimizer(
            self.model.parameter_groups(settings.weight_decay),
            lr=settings.lr,
            betas=settings.betas,
            decoupled_weight_decay=True,
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, settings.steps)
        self.settings, self.corpus = settings, corpus
        self.batches = corpus.batches(settings.batch, settings.model.context, settings.seed)
        self.clock = Clock(settings.device)
        parameters = list(self.model.parameters())
        self.run = Run(name, sum(p.numel() for p in parameters), len(parameters))

    def step(self) -> None:
        """One training step; ``optimizer_ms`` is the time of ``optimizer.step()`` alone."""
        run, clock = self.run, self.clock
        started = clock()
        loss = self.model.loss(*next(self.batches))
        loss.backward()
        before = clock()
        self.optimizer.step()
        after = clock()
        self.optimizer.zero_grad()
        self.schedule.step()
        run.losses.append(loss.item())
        run.optimizer_ms.append(after - before)
        run.step_ms.append(clock() - started)
        step = len(run.losses)
        if not math.isfinite(run.losses[-1]):
            raise Diverged(f"the loss with {run.name} is {run.losses[-1]} at step {step}")
        if step in self.settings.validated_steps:
            run.validation[step] = validation_loss(self.model, self.corpus, self.settings)


def train_together(trainings: Sequence[Training], steps: int, on_step: OnStep, turn: int = 20) -> None:
    """Take all the runs to the end, in turns of a few steps.

    Whatever else the machine does meanwhile then slows all of them alike, and their times stay comparable.
    """
    for start in range(0, steps, turn):
        for training in trainings:
            for _ in range(min(turn, steps - start)):
                training.step()
                on_step(training.run)


@torch.no_grad()
def validation_loss(model: GPT, corpus: Corpus, settings: Settings) -> float:
    """Nats a byte over windows of the text that training never sees."""
    inputs, targets = corpus.validation(settings.model.context, settings.validation_windows)
    pieces = zip(inputs.split(settings.batch), targets.split(settings.batch), strict=True)
    total = sum(model.loss(x, y).item() * len(x) for x, y in pieces)
    return total / len(inputs)
