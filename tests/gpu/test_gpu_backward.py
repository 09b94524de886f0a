"""Stepping in backward on a GPU: the peak of allocated memory, the bits, side streams and captured iterations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam, step_in_backward
from tests.support.helpers import same_bits

LAYERS = 16
WIDTH = 1024
LAYER_BYTES = WIDTH * WIDTH * 4
STEPS = 9


def chain() -> nn.Sequential:
    """Weights of one size alone, a multiple of the allocator's granularity."""
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False, device="cuda") for _ in range(LAYERS)])


def loss(net: nn.Module, t: int) -> Tensor:
    generator = torch.Generator().manual_seed(t)
    return net(torch.randn(4, WIDTH, generator=generator).cuda()).square().mean()


def train(net: nn.Module, opt: FusedRAdam, steps: int) -> None:
    for t in range(steps):
        loss(net, t).backward()
        opt.step()
        opt.zero_grad()


def peak_of_an_iteration(backend: str, during: bool, warm: int) -> float:
    """By how many layers one iteration, after some others, raises what is allocated between iterations."""
    net = chain()
    opt = FusedRAdam(net.parameters(), backend=backend)
    if during:
        step_in_backward(opt)
    loss(chain(), 0).backward()  # what cuBLAS takes for itself in its first backward pass is no gradient
    train(net, opt, warm)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    train(net, opt, 1)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / LAYER_BYTES


def test_peak_of_an_iteration(backend: str) -> None:
    """All layers' gradients in the ordinary way; in backward one, or two while the next is made as one is stepped."""
    ordinary, during = (peak_of_an_iteration(backend, during, warm=3) for during in (False, True))
    assert ordinary >= LAYERS
    assert during < 3


def test_peak_of_the_first_iteration(backend: str) -> None:
    """The moments of all layers, which stay, are made with the first gradient."""
    ordinary, during = (peak_of_an_iteration(backend, during, warm=0) for during in (False, True))
    assert ordinary >= 3 * LAYERS
    assert during < 2 * LAYERS + 3


def test_same_bits_as_after_backward(backend: str) -> None:
    nets = [chain() for _ in range(2)]
    opts = [FusedRAdam(net.parameters(), lr=0.01, weight_decay=0.1, backend=backend) for net in nets]
    step_in_backward(opts[1])
    for net, opt in zip(nets, opts, strict=True):
        train(net, opt, STEPS)
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert same_bits(p.detach().cpu(), q.detach().cpu())
    assert not same_bits(nets[0][0].weight.detach().cpu(), chain()[0].weight.detach().cpu())


def test_layers_on_streams_of_their_own(backend: str) -> None:
    """Parameters are stepped on the streams of their layers; what follows the backward pass waits for all of them."""

    class Streams(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = chain()
            self.streams = [torch.cuda.Stream() for _ in range(4)]

        def forward(self, x: Tensor) -> Tensor:
            main = torch.cuda.current_stream()
            for k, layer in enumerate(self.layers):
                stream = self.streams[k % 4]
                stream.wait_stream(main)
                x.record_stream(stream)
                with torch.cuda.stream(stream):
                    x = layer(x)
                x.record_stream(main)
                main.wait_stream(stream)
            return x

    nets = chain(), Streams()
    opts = [FusedRAdam(net.parameters(), lr=0.01, capturable=True, backend=backend) for net in nets]
    step_in_backward(opts[1])
    for net, opt in zip(nets, opts, strict=True):
        train(net, opt, STEPS)
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert same_bits(p.detach().cpu(), q.detach().cpu())


def test_a_graph_of_a_whole_iteration(backend: str) -> None:
    """Forward, backward and the steps within it in one graph: its replays go on like iterations without one."""
    nets = [chain() for _ in range(2)]
    opts = [FusedRAdam(net.parameters(), lr=0.01, capturable=True, backend=backend) for net in nets]
    step_in_backward(opts[1])
    x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0)).cuda()

    def iterate(net: nn.Module, opt: FusedRAdam) -> None:
        net(x).square().mean().backward()
        opt.step()
        opt.zero_grad()

    for _ in range(3 + STEPS):
        iterate(nets[0], opts[0])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            iterate(nets[1], opts[1])
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # records, and runs nothing
        iterate(nets[1], opts[1])
    for _ in range(STEPS):
        graph.replay()
    torch.cuda.synchronize()
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert same_bits(p.detach().cpu(), q.detach().cpu())
    assert {int(entry["step"]) for entry in opts[1].state.values()} == {3 + STEPS}


def test_a_graph_without_capturable_is_an_error(backend: str) -> None:
    """Caught inside the capture, as what ends one half way may raise an error of its own."""
    net = chain()
    opt = FusedRAdam(net.parameters(), backend=backend)
    step_in_backward(opt)
    train(net, opt, 1)
    x = torch.ones(4, WIDTH, device="cuda")
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        value = net(x).square().mean()
        with pytest.raises(RuntimeError, match="capturable = False"):
            value.backward()
