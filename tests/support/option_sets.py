"""Sets of constructor options by name: each feature alone, and the pairs that share code."""

from __future__ import annotations

from typing import Any

import torch

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "weight_decay": {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
    "flatten": {"flatten": True},
    "flatten-int8": {"flatten": True, "state_dtype": torch.int8},
    "flatten-clipped": {"flatten": True, "max_grad_norm": 0.1},
    "int8": {"state_dtype": torch.int8},
    "fp16_moments": {"state_dtype": torch.float16},
    "bf16_moments": {"state_dtype": torch.bfloat16},
    "fp32_master": {"master_weights": "fp32"},
    "split": {"master_weights": "split"},
    "kahan": {"master_weights": "kahan"},
    "stochastic": {"rounding": "stochastic"},
    "capturable": {"capturable": True},
    "clipped": {"max_grad_norm": 0.1},
    "zero_grads": {"zero_grads": True},
    "offload": {"offload": True},
    "offload-clipped": {"offload": True, "max_grad_norm": 0.1},
    "differentiable": {"differentiable": True},
}
BF16 = ("fp32_master", "split", "kahan", "stochastic")
"""Those whose parameters must be bfloat16."""
