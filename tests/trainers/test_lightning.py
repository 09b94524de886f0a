"""PyTorch Lightning: its precision, clipping, accumulation, scheduler, checkpoints and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning", reason="requirements/trainers.txt has it")
pytest.importorskip("transformers", reason="requirements/trainers.txt has it")

import lightning

from radam_fused import FusedRAdam
from tests.support.helpers import same_bits
from tests.trainers.small import OPTIONS, SAVED_AT, STEPS, WORDS, differ, gpt2, weights


class Model(lightning.LightningModule):
    """What the user would write."""

    def __init__(self, optimizer: type = FusedRAdam, **options: Any) -> None:
        super().__init__()
        self.model = gpt2()
        self.made = optimizer, {**OPTIONS, **options}
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        loss = self.model(input_ids=batch[0], labels=batch[0]).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        make, options = self.made
        optimizer = make(self.parameters(), **options)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(model: Model, folder: Path, precision: str, clip: float | None, resume: Path | None = None) -> Model:
    saving = lightning.pytorch.callbacks.ModelCheckpoint(folder, every_n_train_steps=SAVED_AT, save_top_k=-1)
    trainer = lightning.Trainer(
        accelerator="cpu",
        precision=precision,
        max_steps=STEPS,
        accumulate_grad_batches=2,
        gradient_clip_val=clip,
        callbacks=[saving],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(TensorDataset(WORDS), batch_size=4), ckpt_path=resume, weights_only=False)
    return model


LIMIT = 0.7
"""Of the gradients' norm, which is above it."""
WAYS = {
    "fp32": ("32-true", LIMIT, {}),
    # Under mixed precision Lightning does not clip for optimizers that unscale by themselves; the step does.
    "bf16 autocast": ("bf16-mixed", None, {"max_grad_norm": LIMIT}),
}


@pytest.mark.parametrize("way", WAYS)
def test_trains_and_resumes(way: str, tmp_path: Path) -> None:
    precision, clip, options = WAYS[way]
    whole = fit(Model(**options), tmp_path / "whole", precision, clip)
    optimizer = whole.trainer.optimizers[0]
    assert type(optimizer) is FusedRAdam
    assert all(float(optimizer.state[p]["step"]) == STEPS for p in whole.parameters())
    assert whole.losses[-1] < whole.losses[0] - 0.1
    (checkpoint,) = (tmp_path / "whole").glob(f"*step={SAVED_AT}.ckpt")
    resumed = fit(Model(**options), tmp_path / "resumed", precision, clip, checkpoint)
    assert len(resumed.losses) == 2 * (STEPS - SAVED_AT)
    assert all(same_bits(p, q) for p, q in zip(weights(whole), weights(resumed), strict=True))

    spoilt = torch.load(checkpoint, weights_only=False)  # the negative control
    for state in spoilt["optimizer_states"][0]["state"].values():
        state["exp_avg"].zero_()
    torch.save(spoilt, tmp_path / "spoilt.ckpt")
    other = fit(Model(**options), tmp_path / "other", precision, clip, tmp_path / "spoilt.ckpt")
    assert not all(same_bits(p, q) for p, q in zip(weights(whole), weights(other), strict=True))


def test_precision_and_clipping_are_its_own(tmp_path: Path) -> None:
    """The control of the runs above: either setting makes another run of it."""
    clipped, narrow = (fit(Model(**options), tmp_path, precision, clip) for precision, clip, options in WAYS.values())
    assert differ(clipped, narrow)
    for of, precision in ((clipped, "32-true"), (narrow, "bf16-mixed")):
        assert differ(of, fit(Model(), tmp_path, precision, None))


def test_mixed_precision_leaves_clipping_to_the_step(tmp_path: Path) -> None:
    """As with torch's fused optimizers; the message says so."""
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        fit(Model(), tmp_path, "bf16-mixed", LIMIT)


def test_as_torch_does(tmp_path: Path) -> None:
    ours = fit(Model(), tmp_path / "ours", "32-true", LIMIT)
    theirs = fit(Model(torch.optim.RAdam), tmp_path / "theirs", "32-true", LIMIT)
    for p, q in zip(weights(ours), weights(theirs), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=2e-5)
