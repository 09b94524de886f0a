"""With `step_in_backward` the gradients of about one layer exist at once: counted, and in the process's peak."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from radam_fused import FusedRAdam, step_in_backward
from tests.support.small_models import backward, chain

LAYERS = 12


class LiveGradients:
    """Looks, whenever a gradient is complete, at how many bytes of all gradients so far are still alive."""

    def __init__(self, net: nn.Module) -> None:
        self.most = 0
        self._seen: dict[StorageWeakRef, int] = {}
        for p in net.parameters():
            p.register_post_accumulate_grad_hook(self._look)

    def _look(self, p: Tensor) -> None:
        assert p.grad is not None
        storage = p.grad.untyped_storage()
        self._seen[StorageWeakRef(storage)] = storage.nbytes()
        self.most = max(self.most, sum(size for ref, size in self._seen.items() if not ref.expired()))


def layer_bytes(net: nn.Sequential) -> int:
    return sum(p.numel() * p.element_size() for p in net[0].parameters())


@pytest.mark.parametrize("iterations", [1, 3])
def test_one_layers_gradients_at_once(iterations: int, backend: str) -> None:
    net = chain(LAYERS, 40)
    live = LiveGradients(net)  # its hooks come before ours
    opt = FusedRAdam(net.parameters(), backend=backend)
    step_in_backward(opt)
    for _ in range(iterations):
        backward(net, 40)
        opt.step()
    assert 0 < live.most <= layer_bytes(net)


def test_all_layers_gradients_at_once() -> None:
    """The negative control: the ordinary way, by the same count."""
    net = chain(LAYERS, 40)
    live = LiveGradients(net)
    opt = FusedRAdam(net.parameters(), backend="reference")
    backward(net, 40)
    opt.step()
    assert live.most == LAYERS * layer_bytes(net)


def test_accumulated_gradients_are_kept_all() -> None:
    """`accumulate` saves no memory: another control of the count."""
    net = chain(LAYERS, 40)
    live = LiveGradients(net)
    opt = FusedRAdam(net.parameters(), backend="reference")
    step_in_backward(opt, accumulate=2)
    for _ in range(2):
        backward(net, 40)
    assert live.most == LAYERS * layer_bytes(net)


WIDTH = 1500
SCRIPT = """
import re, torch
from radam_fused import FusedRAdam, step_in_backward
net = torch.nn.Sequential(*[torch.nn.Linear({width}, {width}, bias=False) for _ in range({layers})])
opt = FusedRAdam(net.parameters(), backend='cpu')
x = torch.ones(2, {width})

def peak():  # not ru_maxrss, which a process has from its parent
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1))

if {during}:
    step_in_backward(opt)
before = peak()
for _ in range(3):
    net(x).square().mean().backward()
    opt.step()
    opt.zero_grad()
print(peak() - before)
"""


def peak_growth(during: bool) -> float:
    """By how many layers three iterations raise the peak resident memory of a fresh process."""
    script = SCRIPT.format(width=WIDTH, layers=LAYERS, during=during)
    # By itself glibc keeps what is freed of this size once it has seen it, in a heap whose holes come and go.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env=env)
    return int(done.stdout) * 1024 / (WIDTH * WIDTH * 4)


@pytest.mark.long
def test_peak_of_the_process() -> None:
    """Two moments a layer stay; to them come the gradients of all layers, or of one and little else."""
    ordinary, during = peak_growth(during=False), peak_growth(during=True)
    assert ordinary > 3 * LAYERS
    assert during < 2 * LAYERS + 3
