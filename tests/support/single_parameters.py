"""A parameter, and a step with gradients of ones."""

from __future__ import annotations

import math

import torch
from torch import nn


def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.linspace(-1, 1, math.prod(shape)).reshape(shape).to(dtype))


def step_with_ones(opt: torch.optim.Optimizer) -> None:
    for group in opt.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    opt.step()
