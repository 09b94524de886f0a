"""Parameters, options and comparisons of training with low-precision state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam
from tests.support.helpers import same_bits

SHAPES = ((128, 65), (4096,), (40, 30), (7,), (64, 16, 3, 3), (0,), ())
STATES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
KEPT: dict[str, dict[str, Any]] = {
    "alone": {},
    "stochastic": {"rounding": "stochastic"},
    "fp32": {"master_weights": "fp32"},
    "split": {"master_weights": "split"},
    "kahan": {"master_weights": "kahan"},
}


def parameters(dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    params = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    params[4].data = params[4].data.to(memory_format=torch.channels_last)
    params[0].data = params[0].data.t().contiguous().t()
    return params


def train(opt: FusedRAdam, params: list[nn.Parameter], begin: int, end: int) -> None:
    for t in range(begin, end):
        generator = torch.Generator().manual_seed(t)
        for p in params:
            p.grad = (torch.randn(p.shape, generator=generator) * 10.0 ** (t % 3 - 2)).to(p.dtype)
        opt.step()


def values(opt: FusedRAdam, params: list[nn.Parameter]) -> list[Tensor]:
    return [t.detach().clone() for p in params for t in (p, *(opt.state[p][name] for name in sorted(opt.state[p])))]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(
        same_bits(x, y) if x.is_floating_point() else torch.equal(x, y) for x, y in zip(a, b, strict=True)
    )


OPTIONS = [
    pytest.param({"state_dtype": state, **kept}, id=f"{name}-{state_name}")
    for name, kept in KEPT.items()
    for state_name, state in STATES.items()
]
