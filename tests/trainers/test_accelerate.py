"""Accelerate: a loop of one's own with its mixed precision, accumulation, clipping, scheduler and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("accelerate", reason="requirements/trainers.txt has it")
pytest.importorskip("transformers", reason="requirements/trainers.txt has it")

import accelerate

from radam_fused import FusedRAdam
from tests.support.helpers import same_bits
from tests.trainers.small import OPTIONS, SAVED_AT, STEPS, WORDS, differ, gpt2, weights


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Accelerate keeps its settings for the whole process."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


class Loop:
    """What the user would write."""

    def __init__(self, precision: str, optimizer: type = FusedRAdam, limit: float = 0.7) -> None:
        self.limit = limit
        self.accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
        model = gpt2()
        made = optimizer(model.parameters(), **OPTIONS)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(made, STEPS)
        self.model, self.optimizer, self.loader, self.schedule = self.accelerator.prepare(
            model, made, DataLoader(TensorDataset(WORDS), batch_size=4), schedule
        )
        self.losses: list[float] = []

    def run(self, first: int, last: int) -> None:
        """Steps from the first up to the last."""
        torch.manual_seed(first)
        batches = self.accelerator.skip_first_batches(self.loader, 2 * first)
        for (words,) in batches:
            with self.accelerator.accumulate(self.model):
                loss = self.model(input_ids=words, labels=words).loss
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), self.limit)
                self.optimizer.step()
                self.schedule.step()
                self.optimizer.zero_grad()
            self.losses.append(loss.item())
            if len(self.losses) == 2 * (last - first):
                break

    def weights(self) -> list[Tensor]:
        return weights(self.accelerator.unwrap_model(self.model))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_trains_and_resumes(precision: str, tmp_path: Path) -> None:
    first = Loop(precision)
    first.run(0, SAVED_AT)
    first.accelerator.save_state(str(tmp_path))
    first.losses.clear()
    first.run(SAVED_AT, STEPS)
    assert type(first.optimizer.optimizer) is FusedRAdam
    states = first.optimizer.optimizer.state.values()
    assert [float(state["step"]) for state in states] == [STEPS] * len(states)
    assert first.optimizer.param_groups[0]["lr"] < 1e-6  # the cosine has come down

    resumed = Loop(precision)
    resumed.accelerator.load_state(str(tmp_path))
    resumed.run(SAVED_AT, STEPS)
    assert all(same_bits(p, q) for p, q in zip(first.weights(), resumed.weights(), strict=True))

    forgetful = Loop(precision)  # the negative control: the optimizer's own state is lost
    forgetful.accelerator.load_state(str(tmp_path))
    forgetful.optimizer.optimizer.state.clear()
    forgetful.run(SAVED_AT, STEPS)
    assert not all(same_bits(p, q) for p, q in zip(first.weights(), forgetful.weights(), strict=True))


def test_precision_and_clipping_are_its_own() -> None:
    """The control of the runs above: either setting makes another run of it."""
    found = []
    for precision, limit in (("no", 1e9), ("no", 0.7), ("bf16", 0.7)):
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        loop = Loop(precision, limit=limit)
        loop.run(0, STEPS)
        found.append(loop.accelerator.unwrap_model(loop.model))
    unclipped, clipped, narrow = found
    assert differ(unclipped, clipped)
    assert differ(clipped, narrow)


def test_as_torch_does() -> None:
    loops = [Loop("no"), Loop("no", torch.optim.RAdam)]
    for loop in loops:
        loop.run(0, STEPS)
        assert loop.losses[-1] < loop.losses[0] - 0.1
    for p, q in zip(loops[0].weights(), loops[1].weights(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=2e-5)
