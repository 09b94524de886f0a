"""Trained optimizers in two groups, with their parameters and state compared bit for bit."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.helpers import params_of, same_bits

both_ways = pytest.mark.parametrize("flatten", [False, True], ids=["apart", "flatten"])

SHAPES = [(7, 5), (), (0,), (300,), (3, 4)]
GROUPS = [{"lr": 0.02, "betas": (0.8, 0.99)}, {"weight_decay": 0.1}]


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(5)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in SHAPES]


def grouped(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": params[:2], **GROUPS[0]}, {"params": params[2:], **GROUPS[1]}]


def train(opt: torch.optim.Optimizer, steps: range) -> None:
    for t in steps:
        generator = torch.Generator().manual_seed(t)
        for group in opt.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        opt.step()


def same(a: torch.optim.Optimizer, b: torch.optim.Optimizer) -> bool:
    """Whether parameters and states are equal bit for bit."""
    pairs = list(zip(params_of(a), params_of(b), strict=True))
    return all(same_bits(p, q) and same_state(a.state.get(p, {}), b.state.get(q, {})) for p, q in pairs)


def same_state(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(same_bits(a[key], b[key]) for key in a)


def worst(a: torch.optim.Optimizer, b: torch.optim.Optimizer) -> float:
    return max((p - q).abs().max().item() for p, q in zip(params_of(a), params_of(b), strict=True) if p.numel())


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def as_it_was(opt: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().clone()) for p in params_of(opt)]


def entry(**values: Any) -> Callable[[dict], None]:
    """Puts these into the state of parameter 3, which is in the second group; `...` removes."""

    def spoil(state_dict: dict) -> None:
        for key, value in values.items():
            if value is ...:
                del state_dict["state"][3][key]
            else:
                state_dict["state"][3][key] = value

    return spoil


def group(**values: Any) -> Callable[[dict], None]:
    def spoil(state_dict: dict) -> None:
        state_dict["param_groups"][1].update(values)

    return spoil
