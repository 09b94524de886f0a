"""Hugging Face Transformers' Trainer: schedulers, mixed precision, clipping, checkpoints and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="requirements/trainers.txt has it")

import transformers

from radam_fused import FusedRAdam
from tests.support.helpers import same_bits
from tests.trainers.small import OPTIONS, SAVED_AT, STEPS, Text, differ, gpt2, weights

LIMIT = 0.7
"""Of the gradients' norm, which is above it."""


def trainer(folder: Path, bf16: bool, optimizer: type = FusedRAdam, limit: float = LIMIT, **options: Any) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        lr_scheduler_type="cosine",
        warmup_steps=0,
        max_grad_norm=limit,
        bf16=bf16,
        use_cpu=True,
        save_steps=SAVED_AT,
        logging_steps=1,
        report_to=[],
        seed=1,
        disable_tqdm=True,
    )
    chosen = (optimizer, {**OPTIONS, **options})
    return transformers.Trainer(gpt2(), arguments, train_dataset=Text(), optimizer_cls_and_kwargs=chosen)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16 autocast"])
def test_trains_and_resumes(bf16: bool, tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", bf16)
    whole.train()
    used = whole.optimizer.optimizer
    assert type(used) is FusedRAdam
    assert len(used.param_groups) == 2  # with and without weight decay
    assert all(float(used.state[p]["step"]) == STEPS for p in whole.model.parameters())
    losses = [line["loss"] for line in whole.state.log_history if "loss" in line]
    rates = [line["learning_rate"] for line in whole.state.log_history if "loss" in line]
    assert losses[-1] < losses[0] - 0.1
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.1 * rates[0]
    norms = [line["grad_norm"] for line in whole.state.log_history if "loss" in line]
    assert min(norms) > LIMIT

    resumed = trainer(tmp_path / "resumed", bf16)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{SAVED_AT}"))
    assert all(same_bits(p, q) for p, q in zip(weights(whole.model), weights(resumed.model), strict=True))


def test_a_checkpoint_without_its_optimizer_is_noticed(tmp_path: Path) -> None:
    """The negative control."""
    whole = trainer(tmp_path / "whole", False)
    whole.train()
    checkpoint = tmp_path / "whole" / f"checkpoint-{SAVED_AT}"
    (checkpoint / "optimizer.pt").unlink()
    resumed = trainer(tmp_path / "resumed", False)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert not all(same_bits(p, q) for p, q in zip(weights(whole.model), weights(resumed.model), strict=True))


def test_as_torch_does(tmp_path: Path) -> None:
    """The same run by torch.optim.RAdam, but for the last digits."""
    runs = [trainer(tmp_path / "ours", False), trainer(tmp_path / "theirs", False, torch.optim.RAdam)]
    for run in runs:
        run.train()
    for p, q in zip(weights(runs[0].model), weights(runs[1].model), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=2e-5)
    moved = [(p - q).abs().max() for p, q in zip(weights(runs[0].model), weights(gpt2()), strict=True)]
    assert max(moved) > 1e-3


def test_precision_and_clipping_are_its_own(tmp_path: Path) -> None:
    """The control of the runs above: either setting makes another run of it."""
    plain, clipped, narrow = (
        trainer(tmp_path / "plain", False, limit=0.0),
        trainer(tmp_path / "clipped", False),
        trainer(tmp_path / "narrow", True),
    )
    for run in (plain, clipped, narrow):
        run.train()
    assert differ(plain.model, clipped.model)
    assert differ(clipped.model, narrow.model)


def test_clipping_in_the_step(tmp_path: Path) -> None:
    """``max_grad_norm`` of the optimizer in place of the Trainer's: one pass over the gradients less."""
    theirs, ours = trainer(tmp_path / "a", False), trainer(tmp_path / "b", False, limit=0.0, max_grad_norm=LIMIT)
    unclipped = trainer(tmp_path / "c", False, limit=0.0)
    for run in (theirs, ours, unclipped):
        run.train()
    for p, q in zip(weights(theirs.model), weights(ours.model), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=2e-5)
    far = [(p - q).abs().max() for p, q in zip(weights(ours.model), weights(unclipped.model), strict=True)]
    assert max(far) > 1e-3  # the negative control
    assert float(ours.optimizer.optimizer.last_grad_norm) > 0
