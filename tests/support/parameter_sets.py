"""Sets of parameters of many shapes, their gradients, and short trainings of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.helpers import same_bits

both_ways = pytest.mark.parametrize("flatten", [False, True], ids=["apart", "flatten"])


def set_gradients(params: Iterable[Tensor], seed: int) -> None:
    """A new gradient for every parameter; the same for the same seed and shapes."""
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        if p.grad is None:
            p.grad = grad
        else:
            p.grad.copy_(grad)


def train(opt: torch.optim.Optimizer, steps: range) -> None:
    params = [p for group in opt.param_groups for p in group["params"]]
    for t in steps:
        set_gradients(params, t)
        opt.step()


def parameters(*shapes: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes]


def all_same_bits(a: Iterable[Tensor], b: Iterable[Tensor]) -> bool:
    return all(same_bits(x, y) for x, y in zip(a, b, strict=True))


def model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


class CountCalls(TorchDispatchMode):
    """Counts this package's operators, and the tensors of their parameter lists."""

    def __enter__(self) -> CountCalls:
        self.calls: Counter[str] = Counter()
        self.tensors = 0
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "radam_fused":
            self.calls[func._opname] += 1
            self.tensors += len(args[0])
        return func(*args, **(kwargs or {}))
