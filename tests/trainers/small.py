"""What the trainers train: a GPT-2 of two thousand parameters, built from its configuration, on a cycle of words."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import Dataset

from tests.support.helpers import same_bits

STEPS, SAVED_AT = 10, 4
"""RAdam rectifies from the sixth step on, so after the checkpoint."""
OPTIONS: dict[str, Any] = {"lr": 0.03, "betas": (0.9, 0.99), "weight_decay": 0.1, "decoupled_weight_decay": True}
WORDS = torch.stack([(torch.arange(12) + index) % 8 for index in range(2 * 4 * STEPS)])
"""Enough for two batches of four a step."""


class Text(Dataset):
    """`WORDS`, as Transformers takes them."""

    def __len__(self) -> int:
        return len(WORDS)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": WORDS[index], "labels": WORDS[index]}


def gpt2() -> nn.Module:
    """The same each time."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 8, "n_positions": 12, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = transformers.GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return transformers.GPT2LMHeadModel(config)


def weights(model: nn.Module) -> list[Tensor]:
    """A copy of them."""
    return [p.detach().clone() for p in model.parameters()]


def differ(a: nn.Module, b: nn.Module) -> bool:
    """Whether two models differ by a bit: the control of a setting that might have done nothing."""
    return not all(same_bits(p, q) for p, q in zip(weights(a), weights(b), strict=True))
