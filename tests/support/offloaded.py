"""Training with and without ``offload``, and the staging slots of tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam
from radam_fused.backends import offload
from radam_fused.backends import staging as transfer
from tests.support.helpers import gradients, same_bits

Results = tuple[list[Tensor], list[Tensor]]
SMALL = 4096
SHAPES = [(1000,), (33, 17), (), (7, 300), (0, 5)]


@pytest.fixture
def small_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots of a few hundred elements: many chunks a step, tensors cut in pieces, slots used again and again."""
    monkeypatch.setattr(offload, "SLOT_BYTES", SMALL)


@pytest.fixture
def use_transfer(monkeypatch: pytest.MonkeyPatch) -> Callable[[transfer.Transfer], None]:
    """Makes offloaded steps copy by a given transfer."""
    return lambda chosen: monkeypatch.setattr(offload, "transfer_for", lambda device: chosen)


def model(
    shapes: list[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[list, FusedRAdam]:
    """Parameters in two groups, and their optimizer; the same values for the same shapes."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes]
    groups = [{"params": params[::2], "lr": 0.01}, {"params": params[1::2], "lr": 0.02, "weight_decay": 0.1}]
    return params, FusedRAdam(groups, backend="cpu", **options)


def train(params: list[Tensor], opt: FusedRAdam, steps: range) -> Results:
    for t in steps:
        for p, grad in zip(params, gradients([p.shape for p in params], torch.float32, t), strict=True):
            p.grad = grad.to(p.dtype)
        opt.step()
    return results(params, opt)


def results(params: list[Tensor], opt: FusedRAdam) -> Results:
    moments = [opt.state[p][key] for p in params for key in ("exp_avg", "exp_avg_sq")]
    return [p.detach() for p in params], moments


def same(ours: Results, theirs: Results) -> bool:
    return all(same_bits(a, b) for a, b in zip(ours[0] + ours[1], theirs[0] + theirs[1], strict=True))


class Count(transfer.Transfer):
    """Counts bytes."""

    def __init__(self) -> None:
        self.moved = {"down": 0, "up": 0}
        self.allocated = 0

    def slot(self, nbytes: int) -> transfer.Slot:
        self.allocated += nbytes
        return super().slot(nbytes)

    def down(self, slot: transfer.Slot, copies: transfer.Copies) -> None:
        self.moved["down"] += sum(to.numel() * to.element_size() for to, _ in copies)
        super().down(slot, copies)

    def up(self, slot: transfer.Slot, copies: transfer.Copies) -> None:
        self.moved["up"] += sum(to.numel() * to.element_size() for to, _ in copies)
        super().up(slot, copies)
