"""Training whose steps are captured on a stand-in for CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from radam_fused import FusedRAdam
from tests.support.fake_captures import Device, Graph
from tests.support.helpers import same_bits

SIZES = (70, 5000, 3)


class Training:
    """Parameters whose gradients stay at one address, as a graph needs, and a float learning rate."""

    def __init__(self, backend: str = "cpu", **options: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        self.params = [torch.nn.Parameter(torch.randn(n, generator=generator)) for n in SIZES]
        self.grads = [torch.zeros(n) for n in SIZES]
        for p, grad in zip(self.params, self.grads, strict=True):
            p.grad = grad
        options = {"lr": 0.02, "capturable": True, "weight_decay": 0.1, **options}
        self.optimizer = FusedRAdam(self.params, backend=backend, **options)
        self.grads = [p.grad for p in self.params]
        self.device = Device([t.detach() for t in (*self.params, *self.grads)])

    def backward(self, k: int) -> None:
        """Other gradients, in the same memory."""
        generator = torch.Generator().manual_seed(k + 1)
        for grad in self.grads:
            grad.copy_(torch.randn(grad.shape, generator=generator))

    def has(self, present: list[int] | None) -> None:
        for k, (p, grad) in enumerate(zip(self.params, self.grads, strict=True)):
            p.grad = grad if present is None or k in present else None

    def step(self, k: int, present: list[int] | None = None) -> None:
        self.backward(k)
        self.has(present)
        self.optimizer.step()

    def capture(self, present: list[int] | None = None) -> Graph:
        self.has(present)
        self.add_state()
        with self.device.capture() as graph:
            self.optimizer.step()
        return graph

    def add_state(self) -> None:
        """Gives the device the optimizer's state."""
        for bucket in self.optimizer._bucket_manager.buckets:
            counts = bucket.counts.shown, bucket.counts.taken
            for buffer in (bucket.exp_avg, bucket.exp_avg_sq, bucket.scales, bucket.master, *counts):
                if buffer is not None:
                    self.device.add(buffer)
        for flat in self.optimizer._bucket_manager.flat_buffers.values():
            self.device.add(flat.param)
            self.device.add(flat.grad)

    def replay(self, graph: Graph, k: int) -> None:
        self.backward(k)
        graph.replay()

    def rate(self, lr: float) -> None:
        self.optimizer.param_groups[0]["lr"] = lr

    def state(self) -> list[Tensor]:
        entries = [self.optimizer.state[p] for p in self.params]
        return [*(p.detach() for p in self.params), *(e[n] for e in entries for n in ("step", "exp_avg", "exp_avg_sq"))]

    def check(self, expected: Training) -> None:
        """Every bit of another run."""
        names = [f"{what} {k}" for what in ("parameter", "state") for k in range(9)]
        for name, a, b in zip(names, self.state(), expected.state(), strict=False):
            assert same_bits(a, b), (name, a, b)


@contextmanager
def device_of(training: Training) -> Iterator[None]:
    with training.device.replacing_cuda():
        yield


OPTIONS = {
    "plain": {},
    "clipped": {"max_grad_norm": 0.5},
    "flatten": {"flatten": True},
    "zero_grads": {"zero_grads": True},
    "adam": {"rectification": "none"},
}
OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))


def stories(**options: Any) -> tuple[Training, Training]:
    """Two alike: one that captures, and one that takes every step eagerly."""
    return Training(**options), Training(**options)
