"""Small models: one of many kinds of parameters, with its training and the comparison by bits, and chains of layers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from radam_fused import FusedRAdam
from tests.support.helpers import same_bits

STEPS = 7
"""Enough to be past the rectification branch, which beta2 = 0.999 passes at t = 6: a rectified step follows another."""


class Net(nn.Module):
    """A language model in miniature: a tied head, a layer used twice, a norm, and a parameter that takes no part."""

    def __init__(self, dtype: torch.dtype = torch.float32, reentrant: bool | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embedding = nn.Embedding(11, 8)
            self.up, self.down = nn.Linear(8, 24), nn.Linear(24, 8)
            self.twice = nn.Linear(8, 8)
            self.norm = nn.LayerNorm(8)
            self.head = nn.Linear(8, 11, bias=False)
            self.idle = nn.Parameter(torch.ones(5))
        self.head.weight = self.embedding.weight
        self.reentrant = reentrant
        self.to(dtype)

    def block(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = self.block(x) if self.reentrant is None else checkpoint(self.block, x, use_reentrant=self.reentrant)
        return self.head(self.norm(self.twice(torch.tanh(self.twice(x)))))

    def loss(self, seed: int) -> Tensor:
        tokens = torch.randint(11, (3, 7), generator=torch.Generator().manual_seed(seed))
        logits = self(tokens[:, :-1]).float()
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


class Training(NamedTuple):
    net: Net
    opt: FusedRAdam


def training(backend: str, net: Net | None = None, **options: Any) -> Training:
    net = net or Net()
    norms = [*net.norm.parameters(), net.up.bias]
    rest = [p for p in net.parameters() if not any(p is q for q in norms)]
    groups = [{"params": rest}, {"params": norms, "lr": 0.03, "weight_decay": 0.0}]
    return Training(net, FusedRAdam(groups, **{"lr": 0.01, "backend": backend, **options}))


def train(run: Training, steps: range, passes: int = 1) -> None:
    for t in steps:
        for k in range(passes):
            run.net.loss(100 * t + k).backward()
        run.opt.step()
        run.opt.zero_grad()


def assert_same(a: Training, b: Training) -> None:
    """Parameters, moments and step counts have the same bits."""
    names = [name for name, _ in a.net.named_parameters()]
    for name, p, q in zip(names, a.net.parameters(), b.net.parameters(), strict=True):
        assert same_bits(p, q), name
        assert set(a.opt.state.get(p) or ()) == set(b.opt.state.get(q) or ()), name
        for key, value in (a.opt.state.get(p) or {}).items():
            assert same_bits(value, b.opt.state[q][key]), name


def chain(length: int, width: int = 4) -> nn.Sequential:
    """Equal layers, one after the other."""
    return nn.Sequential(*[nn.Linear(width, width) for _ in range(length)])


def backward(net: nn.Module, width: int = 4) -> None:
    net(torch.ones(2, width)).square().mean().backward()
