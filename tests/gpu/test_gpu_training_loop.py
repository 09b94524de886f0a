"""What surrounds a step on the GPU: captured graphs, GradScaler, clipping, learning rates; and that nothing waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.gpu import traces
from radam_fused import FusedRAdam
from tests.gpu import on_gpu

REPLAYS = 1000
BETA2 = (0.9, 0.99, 0.999, 0.9995, 0.9999, 0.99999, 0.999999)


class Model(torch.nn.Module):
    """Two layers by plain reductions, whose bits depend on no library's choice of a kernel."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = torch.nn.Parameter((0.3 * torch.randn(16, 24, generator=generator)).to("cuda"))
        self.bias = torch.nn.Parameter(torch.zeros(24, device="cuda"))
        self.second = torch.nn.Parameter((0.3 * torch.randn(24, 1, generator=generator)).to("cuda"))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh((x[:, :, None] * self.first).sum(1) + self.bias)
        return (hidden[:, :, None] * self.second).sum(1)


class Loop:
    """A training loop with static input, gradients and learning rate: eager, or captured and replayed."""

    def __init__(self, backend: str, **options: Any) -> None:
        self.model = Model()
        self.lr = torch.tensor(1e-2, device="cuda")
        self.optimizer = FusedRAdam(self.model.parameters(), self.lr, backend=backend, **options)
        self.x = torch.zeros(8, 16, device="cuda")
        self.y = torch.zeros(8, 1, device="cuda")
        self.batches = torch.randn(64, 8, 17, generator=torch.Generator().manual_seed(1)).to("cuda")
        for p in self.model.parameters():
            p.grad = torch.zeros_like(p)

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=False)
        (self.model(self.x) - self.y).square().mean().backward()
        self.optimizer.step()

    def load(self, t: int) -> None:
        batch = self.batches[t % len(self.batches)]
        self.x.copy_(batch[:, :16])
        self.y.copy_(batch[:, 16:])
        self.lr.fill_(1e-2 * 0.999**t)

    def run(self, steps: int, captured: bool) -> Loop:
        """Three steps as they are, on a side stream as torch asks for before a capture, and then the others."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for t in range(3):
                self.load(t)
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        replay: Callable[[], None] = self.step
        if captured:
            graph = torch.cuda.CUDAGraph()
            kept = [p.detach().clone() for p in self.everything()]
            with torch.cuda.graph(graph):
                self.step()
            for tensor, value in zip(self.everything(), kept, strict=True):
                assert torch.equal(tensor, value), "capturing must not run anything"
            replay = graph.replay
        for t in range(3, steps):
            self.load(t)
            replay()
        return self

    def everything(self) -> list[Tensor]:
        return [
            tensor
            for p in self.model.parameters()
            for tensor in (p.detach(), *(self.optimizer.state[p][k] for k in ("step", "exp_avg", "exp_avg_sq")))
        ]


def assert_same(a: Loop, b: Loop) -> None:
    for ours, theirs in zip(a.everything(), b.everything(), strict=True):
        assert torch.equal(ours.cpu(), theirs.cpu())


@pytest.mark.parametrize("flatten", [False, True], ids=["tensors", "flatten"])
@pytest.mark.parametrize("clip", [None, 0.05], ids=["", "clip"])
def test_a_captured_loop_equals_the_eager_one(backend: str, clip: float | None, flatten: bool) -> None:
    """Forward, backward, clip and step in one graph, replayed a thousand times with another batch and rate each."""
    options = {"max_grad_norm": clip, "flatten": flatten, "weight_decay": 0.01}
    captured = Loop(backend, capturable=True, **options).run(REPLAYS, captured=True)
    eager = Loop(backend, capturable=False, **options).run(REPLAYS, captured=False)
    assert_same(captured, eager)
    if clip is not None:
        assert torch.equal(captured.optimizer.last_grad_norm, eager.optimizer.last_grad_norm)
    assert {int(captured.optimizer.state[p]["step"]) for p in captured.model.parameters()} == {REPLAYS}


def test_another_rate_shows() -> None:
    """The negative control."""
    loops = [Loop("cuda", capturable=True).run(20, captured=True) for _ in range(2)]
    loops[1].lr.mul_(1.001)
    for loop in loops:
        loop.step()
    with pytest.raises(AssertionError):
        assert_same(*loops)


@pytest.mark.parametrize("beta2", BETA2)
def test_captured_rows_for_every_beta2(backend: str, beta2: float) -> None:
    """rho_t, the branch and r_t, made on the device: 40 steps with the host's bits."""
    captured = Loop(backend, capturable=True, betas=(0.9, beta2)).run(40, captured=True)
    host = Loop(backend, betas=(0.9, beta2))
    host.optimizer.param_groups[0]["lr"] = 0.0  # a number, so that the host computes the scalars
    load = host.load

    def load_number(t: int) -> None:
        load(t)
        host.optimizer.param_groups[0]["lr"] = host.lr.item()

    host.load = load_number
    assert_same(captured, host.run(40, captured=False))
    assert host.optimizer.state[host.model.bias]["step"].device.type == "cpu"


def test_capture_needs_capturable(backend: str) -> None:
    _, opt = on_gpu.model([(1000,)], backend)
    opt.step()
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="capturable"), torch.cuda.graph(graph):
        opt.step()
    torch.cuda.synchronize()


@contextmanager
def nothing_waits() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


STEPPING = {
    "scalars_on_the_host": {},
    "capturable": {"capturable": True},
    "clip": {"max_grad_norm": 0.1},
    "tensor_lr": {"lr": True},
    "zero_grads": {"zero_grads": True},
}


@pytest.mark.parametrize("flatten", [False, True], ids=["tensors", "flatten"])
@pytest.mark.parametrize("options", STEPPING.values(), ids=list(STEPPING))
def test_no_step_waits(backend: str, options: dict[str, Any], flatten: bool) -> None:
    """Also not where parameters without a gradient change from step to step."""
    options = {**options, **({"lr": torch.tensor(0.01, device="cuda")} if "lr" in options else {})}
    params, opt = on_gpu.model([(1000,), (7, 5), (300,)], backend, flatten=flatten, **options)
    if "lr" in options:
        opt.param_groups[0]["lr"] = options["lr"]
    opt.step()
    grads = [p.grad for p in params]
    with nothing_waits():
        for t in range(8):
            params[t % 3].grad = None
            opt.step()
            params[t % 3].grad = grads[t % 3]


def test_a_waiting_step_is_noticed() -> None:
    """The negative control."""
    p = torch.nn.Parameter(torch.ones(3, device="cuda"))
    with pytest.raises(RuntimeError, match="synchroniz"), nothing_waits():
        p.sum().item()


@pytest.mark.parametrize("clip", [None, 0.1], ids=["", "clip"])
def test_grad_scaler(backend: str, clip: float | None) -> None:
    """Planted infinities skip steps, without waiting; the rest is a run that never had them."""
    runs = []
    for planted in (True, False):
        params, opt = on_gpu.model([(1000,), (33, 5)], backend, max_grad_norm=clip)
        scaler = torch.amp.GradScaler("cuda", init_scale=1024.0, growth_interval=10**6, backoff_factor=1.0 - 2**-53)
        scaler.scale(torch.zeros((), device="cuda"))  # makes its tensors
        generator = torch.Generator().manual_seed(3)
        for t in range(24):
            infinite = t % 3 == 2
            if infinite and not planted:
                continue
            for p in params:
                values = torch.full(p.shape, 1.0) if infinite else torch.randn(p.shape, generator=generator)
                p.grad = 1024.0 * values.to("cuda")
            if infinite:
                params[1].grad[3, 2] = float("inf")
            before = [p.detach().clone() for p in params]
            if t == 0:
                scaler.step(opt)
            else:
                with nothing_waits():
                    scaler.step(opt)
            scaler.update(1024.0)
            assert infinite == all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
        runs.append((params, opt))
    (params, opt), (others, other) = runs
    assert on_gpu.same(params, others)
    assert [int(opt.state[p]["step"]) for p in params] == [16, 16] == [int(other.state[p]["step"]) for p in others]


def test_launches_of_a_clipped_step(backend: str) -> None:
    """One for the norm, one for the scalars, one for the step."""
    _, opt = on_gpu.model([(1000,)] * 50, backend, max_grad_norm=0.1)
    for _ in range(3):
        opt.step()
    traces.record(lambda: torch.zeros(1000, device="cuda"))
    trace = traces.record(opt.step)
    assert len(trace.kernels) == 3, trace.kernels
    assert trace.memsets == 0


def test_compiled_step(backend: str) -> None:
    """Inside torch.compile, with Inductor."""
    torch._dynamo.reset()
    runs = []
    for compiled in (True, False):
        params, opt = on_gpu.model([(1000,), (33, 5)], backend, capturable=True, max_grad_norm=0.1)
        step = torch.compile(lambda opt=opt: opt.step(), fullgraph=True) if compiled else opt.step
        for _ in range(9):
            step()
        runs.append(params)
    assert on_gpu.same(*runs)
