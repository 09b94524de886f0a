"""The order of an offloaded step's copies, on streams that run at random (tests/support/fake_streams.py)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from radam_fused import FusedRAdam
from radam_fused.backends import offload
from radam_fused.backends import staging as transfer
from tests.support.fake_streams import Event, Stream, World
from tests.support.helpers import gradients, same_bits

SHAPES = [(700,), (33, 17), (), (40, 9)]
STEPS = 3
SEEDS = range(25)


class Simulated(transfer.StreamTransfer):
    """The GPU's transfer, with memory that is not pinned."""

    def slot(self, nbytes: int) -> transfer.Slot:
        memory = torch.full((nbytes,), 0xFF, dtype=torch.uint8)  # NaNs: what is read before it is there shows
        return transfer.Slot(memory, events=True)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "SLOT_BYTES", 1024)
    monkeypatch.setattr(offload, "transfer_for", Simulated)


def parameters() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    params.append(torch.nn.Parameter(torch.randn(30, 40, generator=generator).t()))
    for p in params:
        p.grad = torch.zeros(p.shape)
    return params


def train(seed: int) -> list[Tensor]:
    """Parameters and gradients as the caller's stream sees them after each step; only streams order them."""
    params, seen = parameters(), []
    opt = FusedRAdam(params, lr=0.1, backend="cpu", offload=True, zero_grads=True)
    with World(seed).replacing_cuda() as world:
        for t in range(STEPS):
            for p, grad in zip(params, gradients([p.shape for p in params], torch.float32, t), strict=True):
                p.grad.copy_(grad, non_blocking=True)
            opt.step()
            for tensor in [tensor for p in reversed(params) for tensor in (p.detach(), p.grad)]:  # the last one first
                seen.append(torch.full_like(tensor, 7.0))
                seen[-1].copy_(tensor, non_blocking=True)
        world.synchronize()
    return seen


def in_order() -> list[Tensor]:
    params, seen = parameters(), []
    opt = FusedRAdam(params, lr=0.1, backend="cpu")
    for t in range(STEPS):
        for p, grad in zip(params, gradients([p.shape for p in params], torch.float32, t), strict=True):
            p.grad.copy_(grad)
        opt.step()
        seen += [tensor for p in reversed(params) for tensor in (p.detach().clone(), torch.zeros(p.shape))]
    return seen


def right(seed: int) -> bool:
    return all(same_bits(a, b) for a, b in zip(train(seed), in_order(), strict=True))


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_any_order_that_the_streams_allow(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "SLOTS", slots)
    assert all(right(seed) for seed in SEEDS)


def no_wait(*args: object) -> None:
    """In the place of a wait that is left out."""


WAITS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "for the gradients": lambda patch: patch.setattr(Simulated, "begin", no_wait),
    "for copies down": lambda patch: patch.setattr(Event, "synchronize", no_wait),
    "for a slot's copies up": lambda patch: patch.setattr(Stream, "wait_event", no_wait),
    "for the parameters": lambda patch: patch.setattr(Simulated, "finish", no_wait),
}


@pytest.mark.parametrize("leave_out", WAITS.values(), ids=WAITS)
def test_every_wait_matters(leave_out: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: without any one of them, some order gives other bits."""
    leave_out(monkeypatch)
    assert not all(right(seed) for seed in SEEDS)
