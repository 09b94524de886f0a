"""Parameters of several dtypes, so of several buckets, and their gradients."""

from __future__ import annotations

import torch
from torch import nn


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
