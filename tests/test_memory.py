"""A step allocates nothing of a parameter's size: measured by the process's peak, and by torch's allocator."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from radam_fused import FusedRAdam

ELEMENTS = 16_000_000
SCRIPT = """
import re, torch
from radam_fused import FusedRAdam
p = torch.nn.Parameter(torch.ones({elements}))
p.grad = torch.ones_like(p)
opt = {optimizer}
opt.step()

def peak():  # not ru_maxrss, which a process has from its parent
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1))

before = peak()
for _ in range(7):
    opt.step()
print(peak() - before)
"""


def peak_growth(optimizer: str) -> int:
    """Bytes by which seven more steps raise the peak resident memory of a fresh process."""
    script = SCRIPT.format(elements=ELEMENTS, optimizer=optimizer)
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return int(done.stdout) * 1024


@pytest.mark.parametrize("flatten", [False, True], ids=["tensors", "flatten"])
def test_peak_memory_stays(flatten: bool) -> None:
    """After the first step, which makes the state, the peak grows by less than a twentieth of the parameter."""
    assert peak_growth(f"FusedRAdam([p], backend='cpu', flatten={flatten})") < ELEMENTS * 4 // 20


def test_peak_memory_of_torch_grows() -> None:
    """The negative control: torch.optim.RAdam's temporaries show in the same measurement, once it rectifies."""
    assert peak_growth("torch.optim.RAdam([p], foreach=False)") > ELEMENTS * 4 // 2


def allocated(opt: torch.optim.Optimizer) -> int:
    """Bytes that torch's allocator hands out during one step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        opt.step()
    return sum(max(event.cpu_memory_usage, 0) for event in prof.events())


def parameter(layout: str) -> torch.nn.Parameter:
    values = torch.ones(1000, 1000)
    p = torch.nn.Parameter(values.t() if layout == "transposed" else values)
    p.grad = torch.ones(1, 1).expand(1000, 1000) if layout == "expanded gradient" else torch.ones(1000, 1000)
    return p


@pytest.mark.parametrize("layout", ["row-major", "transposed", "expanded gradient"])
def test_torch_allocates_nothing_large(layout: str) -> None:
    """Strided gradients are read where they lie: no copy of them either."""
    opt = FusedRAdam([parameter(layout)], backend="cpu")
    opt.step()
    assert allocated(opt) < 10_000


def test_the_reference_allocates() -> None:
    """The negative control: temporaries of the plain implementation show."""
    opt = FusedRAdam([parameter("row-major")], backend="reference")
    opt.step()
    assert allocated(opt) > 4_000_000
