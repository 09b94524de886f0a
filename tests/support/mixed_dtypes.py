"""Parameters of several dtypes or of one, so of several buckets or of one, their gradients and steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from radam_fused import FusedRAdam


def parameters() -> list[nn.Parameter]:
    shapes: list[tuple[tuple[int, ...], torch.dtype]] = [
        ((3, 5), torch.float32),
        ((7,), torch.float64),
        ((4, 2), torch.bfloat16),
        ((6,), torch.float32),
    ]
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape, dtype in shapes]


def give(params: list[nn.Parameter], t: int) -> None:
    generator = torch.Generator().manual_seed(t)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def step(params: list[nn.Parameter], opt: torch.optim.Optimizer, t: int) -> None:
    give(params, t)
    opt.step()


def one_dtype(options: dict[str, Any]) -> tuple[list[nn.Parameter], FusedRAdam]:
    """Parameters of float32 alone, so of one bucket, with their optimizer."""
    params = [nn.Parameter(torch.linspace(-1.0, 1.0, 30 + k)) for k in range(3)]
    return params, FusedRAdam(params, lr=0.01, **options)
