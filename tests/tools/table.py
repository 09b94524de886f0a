"""What works in which tool: the table of docs/trainers.md, from which the tests of a tool take what they run.

A cell is one of four words. ``works``: the tool trains with the option, with the losses of torch.optim.RAdam in the
same tool, and resumes with the same bits. ``error``: an exception whose message says what to do. ``no effect``: the run
is the one without the option, bit for bit. ``none``: the page says why there is nothing to try.
"""

from __future__ import annotations

from typing import Any

import torch

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "flatten": {"flatten": True},
    "int8": {"state_dtype": torch.int8},
    "split": {"master_weights": "split"},
    "max_grad_norm": {"max_grad_norm": 0.1},
    "step_in_backward": {},
}
"""The columns, and what FusedRAdam is given for each."""
_WORKS = ("works",) * 5
CELLS: dict[str, tuple[str, ...]] = {
    "DistributedDataParallel": (*_WORKS, "error"),
    "FSDP2": ("works", "error", "works", "works", "works", "works"),
    "FSDP1, flat parameters": ("works", "error", "works", "works", "error", "error"),
    "FSDP1, original parameters": ("works", "error", "none", "works", "error", "works"),
    "FSDP2, torchao's float8": ("works", "error", "works", "works", "works", "works"),
    "FSDP2, torchao's float8, gathered so": ("error",) * 6,
    "torch.distributed.pipelining": (*_WORKS, "works"),
    "Transformers": (*_WORKS, "error"),
    "TRL, PEFT's LoRA": (*_WORKS, "error"),
    "TRL, PEFT's LoRA+": (*_WORKS, "error"),
    "Accelerate": (*_WORKS, "error"),
    "Accelerate, FSDP2": ("works", "error", "works", "works", "works", "works"),
    "Lightning, manual optimization": (*_WORKS, "error"),
    "Lightning, FSDPStrategy": ("none",) * 6,
    "Ray Train": (*_WORKS, "error"),
    "timm": (*_WORKS, "works"),
    "torchtitan": ("works", "error", "works", "works", "works", "works"),
    "Megatron-Core, FP32Optimizer": ("works", "works", "works", "no effect", "works", "error"),
    "Megatron-Core, Float16Optimizer": ("works", "works", "works", "no effect", "works", "no effect"),
    "Megatron-Core, DistributedOptimizer": ("none",) * 6,
    "DeepSpeed, ZeRO 0, fp32": ("works", "works", "works", "no effect", "works", "error"),
    "DeepSpeed, ZeRO 0, bf16": ("works", "works", "works", "no effect", "works", "no effect"),
    "DeepSpeed, ZeRO 1 to 3": ("works", "works", "works", "no effect", "error", "no effect"),
}
"""The rows."""


def cell(tool: str, option: str) -> str:
    """The word of a cell."""
    return CELLS[tool][list(OPTIONS).index(option)]


def lines() -> list[str]:
    """The table in Markdown."""
    rows = [("", *(f"`{name}`" if name != "plain" else name for name in OPTIONS))]
    rows += [("---",) * len(rows[0])]
    rows += [(tool, *words) for tool, words in CELLS.items()]
    return ["| " + " | ".join(row) + " |" for row in rows]
