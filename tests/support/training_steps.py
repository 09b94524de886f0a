"""Steps of FusedRAdam and of torch.optim.RAdam on equal gradients, alone or under a GradScaler."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

TOLERANCE = 1e-6
"""The largest deviation of a parameter, relative to its largest value; ten times as much of a moment."""


def noise(shape: torch.Size | tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.complex128 if dtype.is_complex else torch.float64).to(
        dtype
    )


def deviation(a: Tensor, b: Tensor) -> float:
    """Relative to the largest value."""
    a, b = a.detach().cpu(), b.detach().cpu()
    error = ((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item()
    return error if error == error else math.inf


both_ways = pytest.mark.parametrize("flatten", [False, True], ids=["apart", "flatten"])
native = pytest.mark.parametrize("name", ["cpu", "reference"])


def small(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(noise(shape, i, dtype)) for i, shape in enumerate([(4, 3), (5,), ()])]


def give(params: list[nn.Parameter], t: int, factor: float = 1.0) -> None:
    for i, p in enumerate(params):
        grad = noise(p.shape, 10 * t + i, p.dtype) * factor
        if p.grad is None:
            p.grad = grad
        else:
            p.grad.copy_(grad)


def train(opt: torch.optim.Optimizer, steps: range) -> None:
    params = [p for group in opt.param_groups for p in group["params"]]
    for t in steps:
        give(params, t)
        opt.step()


def contents(opt: torch.optim.Optimizer) -> list[Tensor]:
    """Copies of all parameters, moments and step counts; zeros where there is no state yet."""
    result = []
    for p in (p for group in opt.param_groups for p in group["params"]):
        state = opt.state.get(p) or {}
        zero = torch.zeros(p.shape, dtype=torch.promote_types(p.dtype, torch.float32))
        result += [p, state.get("step", torch.zeros(())), state.get("exp_avg", zero), state.get("exp_avg_sq", zero)]
    return [tensor.detach().clone() for tensor in result]


def scaler_of(scale: float = 1024.0) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)


class Amp:
    """Steps through a GradScaler whose scale is a power of 2, so that it rounds nothing."""

    def __init__(self, opt: torch.optim.Optimizer, scale: float = 1024.0) -> None:
        self.opt, self.scaler = opt, scaler_of(scale)
        self.params = [p for group in opt.param_groups for p in group["params"]]

    def backward(self, t: int) -> None:
        self.scaler.scale(torch.zeros(()))  # as any loss would be
        give(self.params, t, self.scaler.get_scale())

    def step(self) -> None:
        self.scaler.step(self.opt)
        self.scaler.update()
