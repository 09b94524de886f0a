"""Transformers' Trainer and TRL's SFTTrainer with PEFT's LoRA and LoRA+, on two processes: what a rank does."""

from __future__ import annotations

from tests.tools import torchvision_operators  # noqa: F401  # isort: skip

import logging
from typing import Any

import peft
import torch
import transformers
import trl
from datasets import Dataset, disable_progress_bars
from peft.optimizers import create_loraplus_optimizer
from tokenizers import Tokenizer, models

from radam_fused import step_in_backward
from tests.tools.accelerate_runs import as_torchrun
from tests.tools.small import HYPER, LIMIT, SAVED_AT, STEPS, Layouts, Run, dtype_of, optimizer_class, shared_folder
from tests.tools.table import OPTIONS


def language_model(dtype: torch.dtype) -> Any:
    """A GPT-2 of one layer and width 64."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "n_positions": 16, "n_embd": 64, "n_layer": 1, "n_head": 2}
    config = transformers.GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return transformers.GPT2LMHeadModel(config).to(dtype)


def text() -> Dataset:
    """Enough for two ranks with two sequences a step."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(64, (4 * STEPS, 12), generator=generator).tolist()
    return Dataset.from_dict({"input_ids": words, "labels": words, "attention_mask": [[1] * 12] * len(words)})


def words() -> Any:
    """A tokenizer, which SFTTrainer asks for; the text is numbers already."""
    tokenizer = Tokenizer(models.WordLevel({str(index): index for index in range(64)}, unk_token="0"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="0", eos_token="1", unk_token="0")


class Inspect(transformers.TrainerCallback):
    """Turns on what a user's script would turn on between making the optimizer and training."""

    def __init__(self, in_backward: bool) -> None:
        self.in_backward = in_backward

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        if self.in_backward:
            step_in_backward(getattr(optimizer, "optimizer", optimizer))


def quiet(made: Any) -> Any:
    """Takes away what prints every loss."""
    made.remove_callback(transformers.PrinterCallback)
    return made


def arguments(kind: type, folder: str, limit: float, **more: Any) -> Any:
    """The arguments that both trainers take."""
    return kind(
        output_dir=folder,
        max_steps=STEPS,
        per_device_train_batch_size=2,
        lr_scheduler_type="constant",
        max_grad_norm=limit,
        weight_decay=HYPER["weight_decay"],
        use_cpu=True,
        ddp_backend="gloo",
        save_steps=SAVED_AT,
        logging_steps=1,
        report_to=[],
        seed=1,
        disable_tqdm=True,
        **more,
    )


def trainer(kind: str, folder: str, clip: bool, option: str, theirs: bool) -> Any:
    """The trainer of a run.

    Args:
        kind: "transformers", "lora" or "lora+".
        folder: where checkpoints are written.
        clip: whether the trainer clips.
        option, theirs: as everywhere.
    """
    as_torchrun()
    logging.disable(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    disable_progress_bars()
    model = language_model(dtype_of(option, theirs))
    options = {} if theirs else OPTIONS[option]
    ours_clips = option == "max_grad_norm" and not theirs
    limit = 0.0 if ours_clips or not clip else LIMIT
    chosen = optimizer_class(theirs), {**HYPER, **options}
    more: dict[str, Any] = {
        "train_dataset": text(),
        "callbacks": [Inspect(option == "step_in_backward" and not theirs)],
    }
    if kind == "transformers":
        settings = arguments(transformers.TrainingArguments, folder, limit)
        return quiet(transformers.Trainer(model, settings, optimizer_cls_and_kwargs=chosen, **more))
    settings = arguments(trl.SFTConfig, folder, limit, bf16=False, gradient_checkpointing=False)
    lora = peft.LoraConfig(r=64, lora_alpha=64, target_modules=["c_attn", "c_proj"], task_type="CAUSAL_LM")
    if kind == "lora":
        more |= {"peft_config": lora, "optimizer_cls_and_kwargs": chosen}
    else:
        model = peft.get_peft_model(model, lora)
        group = {"lr": HYPER["lr"], "loraplus_lr_ratio": 4.0, "betas": HYPER["betas"], "decoupled_weight_decay": True}
        optimizer = create_loraplus_optimizer(
            model, optimizer_cls=chosen[0], loraplus_weight_decay=HYPER["weight_decay"], **group, **options
        )
        assert {HYPER["lr"], 4 * HYPER["lr"]} < {group["lr"] for group in optimizer.param_groups if group["params"]} | {
            0.0
        }
        more["optimizers"] = optimizer, None
    return quiet(trl.SFTTrainer(model, args=settings, processing_class=words(), **more))


def train(kind: str, clip: bool, option: str, theirs: bool) -> Run:
    """A run with a checkpoint in between, and one that resumes from it."""
    folder = shared_folder()
    whole = trainer(kind, folder, clip, option, theirs)
    with Layouts() as layouts:
        whole.train()
    losses = [line["loss"] for line in whole.state.log_history if "loss" in line]
    resumed = trainer(kind, folder + "/resumed", clip, option, theirs)
    resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-{SAVED_AT}")
    again = [line["loss"] for line in resumed.state.log_history if "loss" in line][-(STEPS - SAVED_AT) :]
    return Run(losses, again, layouts.steps)
