"""A tiny model, trained by ranks of any kind, with everything that a single process needs to repeat it.

`Record` is what a run leaves behind: the first parameters, the whole gradients of every step, the last parameters and
moments. `repeat` takes the same gradients through the ``reference`` backend in one process; the two have to agree bit
for bit. Sizes are uneven for most numbers of ranks; `Tail` has one element, so that most shards of it are empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from radam_fused import FusedRAdam
from tests.support.helpers import same_bits

STEPS = 8
"""RAdam rectifies from the sixth on."""
OPTIONS: dict[str, Any] = {"lr": 0.02, "betas": (0.8, 0.99), "weight_decay": 0.1, "decoupled_weight_decay": True}


class Tail(nn.Module):
    """One number."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((1,), 0.7))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Net(nn.Module):
    """A norm, two layers that tensor parallel can split, and `Tail`."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 6)
        self.down = nn.Linear(6, 3)
        self.tail = Tail()

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.down(torch.tanh(self.up(self.norm(x)))))


def net(dtype: torch.dtype = torch.float32) -> Net:
    """The same on every rank."""
    torch.manual_seed(0)
    return Net().to(dtype)


def batch(step: int, rank: int = 0) -> Tensor:
    """A rank's inputs of a step."""
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(1000 * step + rank))


def whole(tensor: Tensor) -> Tensor:
    """A copy of the whole tensor, by a collective where it is sharded."""
    if isinstance(tensor, DTensor) and tensor.dtype == torch.int16:  # which gloo does not gather
        return tensor.int().full_tensor().short()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


@dataclass
class Record:
    """What a run leaves behind; every list in the order of the parameters."""

    first: list[Tensor]
    grads: list[list[Tensor | None]] = field(default_factory=list)
    last: list[Tensor] = field(default_factory=list)
    states: list[dict[str, Tensor]] = field(default_factory=list)
    ops: list[str] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    def end(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Record:
        """Notes how the run ended."""
        for p in model.parameters():
            self.last.append(whole(p))
            self.states.append({key: whole(value) for key, value in (optimizer.state.get(p) or {}).items()})
        return self


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    backward: Callable[[int], Any],
    steps: range = range(STEPS),
    edit: Callable[[int], Any] | None = None,
) -> Record:
    """Trains, and watches the operators of one step: modes change which way a step goes, so not of all of them.

    Args:
        model: whose ``parameters()`` the optimizer has.
        backward: leaves the gradients of a step.
        edit: is called before each step of the optimizer.
    """
    record = Record([whole(p) for p in model.parameters()])
    for t in steps:
        optimizer.zero_grad()
        backward(t)
        record.grads.append([None if p.grad is None else whole(p.grad) for p in model.parameters()])
        if edit is not None:
            edit(t)
        if t == steps[len(steps) // 2]:
            with watched() as record.ops:
                optimizer.step()
        else:
            optimizer.step()
        norm = getattr(optimizer, "last_grad_norm", None)
        if norm is not None:
            record.norms.append(float(norm))
    return record.end(model, optimizer)


def repeat(record: Record, **options: Any) -> Record:
    """The same gradients in one process, by the ``reference`` backend."""
    params = [nn.Parameter(p.clone()) for p in record.first]
    optimizer = FusedRAdam(params, backend="reference", **{**OPTIONS, **options})
    again = Record(record.first, record.grads)
    for grads in record.grads:
        for p, grad in zip(params, grads, strict=True):
            p.grad = None if grad is None else grad.clone()
        optimizer.step()
        if optimizer.last_grad_norm is not None:
            again.norms.append(float(optimizer.last_grad_norm))
    return again.end(nn.ParameterList(params), optimizer)


def difference(a: Record, b: Record) -> str | None:
    """The first parameter or moment in which two runs differ by a bit, if any does."""
    for k, (p, q) in enumerate(zip(a.last, b.last, strict=True)):
        if not same_bits(p, q):
            return f"parameter {k}"
    for k, (s, r) in enumerate(zip(a.states, b.states, strict=True)):
        if s.keys() != r.keys():
            return f"the state of parameter {k}: {sorted(s)} and {sorted(r)}"
        for name in s:
            if not same_bits(s[name], r[name]):
                return f"{name} of parameter {k}"
    return None


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        sharded = any(isinstance(a, DTensor) for a in torch.utils._pytree.tree_leaves((args, kwargs)))
        self.seen.append(str(func._schema.name) + (" of DTensors" if sharded else ""))
        return func(*args, **(kwargs or {}))


@contextmanager
def watched() -> Iterator[list[str]]:
    """The names of the operators that run inside."""
    with _Watch() as watch:
        yield watch.seen


def collectives(ops: list[str]) -> list[str]:
    """Those of the operators that communicate."""
    found = [op for op in ops if op.startswith(("c10d", "_c10d"))]
    return [op for op in found if not op.endswith(("wait_tensor", "_wrap_tensor_autograd"))]


def fused(ops: list[str]) -> list[str]:
    """The operators that update parameters, torch's too: one that is not ours shows that a step fell back."""
    return [op for op in ops if op.startswith("radam_fused::") or "foreach" in op or "fused_" in op or "DTensor" in op]


def mean_loss(model: nn.Module, t: int, rank: int | None = None) -> Tensor:
    """Of this rank's batch, or of another's."""
    x = batch(t, dist.get_rank() if rank is None else rank)
    like = next(model.parameters())
    return model(x.to(like.device, like.dtype)).float().square().mean()
