"""Training with and without ``flatten`` over equal parameters, and the comparison of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam
from tests.support.helpers import params_of, same_bits

MANY = 100
"""More parameters than a step checks one by one."""


def noise(shape: torch.Size, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def give(p: Tensor, seed: int) -> None:
    """A gradient, into the one that is there or as a new tensor."""
    value = noise(p.shape, seed).to(p.dtype)
    if p.grad is None:
        p.grad = value
    else:
        p.grad.copy_(value)


def train(opt: torch.optim.Optimizer, steps: range) -> None:
    for t in steps:
        for i, p in enumerate(params_of(opt)):
            give(p, 1000 * t + i)
        opt.step()


def small(count: int = MANY, size: int = 3) -> list[nn.Parameter]:
    return [nn.Parameter(noise(torch.Size([size]), i).float()) for i in range(count)]


def pair(make: Callable[[], list[nn.Parameter]] = small, **options: Any) -> list[FusedRAdam]:
    """An optimizer with flatten and one without, over equal parameters."""
    return [FusedRAdam(make(), lr=0.01, flatten=flatten, **options) for flatten in (True, False)]


def same(a: torch.optim.Optimizer, b: torch.optim.Optimizer) -> bool:
    return all(
        same_bits(p, q) and a.state.get(p, {}).get("step") == b.state.get(q, {}).get("step")
        for p, q in zip(params_of(a), params_of(b), strict=True)
    )


def model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 4))


def model_pair() -> tuple[list[nn.Module], list[FusedRAdam]]:
    """Two equal models, with flatten and without."""
    nets = [model(), model()]
    return nets, [FusedRAdam(n.parameters(), lr=0.01, flatten=f) for n, f in zip(nets, (True, False), strict=True)]


def backward(net: nn.Module, t: int) -> Tensor:
    loss = net(noise(torch.Size([8, 6]), t).float()).square().sum()
    loss.backward()
    return loss


def assert_side_by_side(tensors: list[Tensor]) -> None:
    """Each in a storage of its own elements alone, at aligned places one after the other."""
    full = [t for t in tensors if t.numel()]
    assert all(t.untyped_storage().nbytes() == t.numel() * t.element_size() for t in full)
    ends = [t.data_ptr() + t.numel() * t.element_size() for t in full]
    gaps = [after.data_ptr() - end for end, after in zip(ends[:-1], full[1:], strict=True)]
    assert all(0 <= gap < 256 * full[0].element_size() for gap in gaps)


def replace(index: int) -> Callable[[FusedRAdam], Any]:
    def take(opt: FusedRAdam) -> Any:
        p = params_of(opt)[index]
        held = p.detach()
        p.data = p.data.clone()
        return held

    return take
