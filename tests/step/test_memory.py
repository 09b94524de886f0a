"""A step allocates nothing of a parameter's size: measured by the process's peak, and by torch's allocator."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from radam_fused import FusedRAdam
from radam_fused.state import memory

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


@pytest.mark.long
@pytest.mark.parametrize("flatten", [False, True], ids=["tensors", "flatten"])
def test_peak_memory_stays(flatten: bool) -> None:
    """After the first step, which makes the state, the peak grows by less than a twentieth of the parameter."""
    assert peak_growth(f"FusedRAdam([p], backend='cpu', flatten={flatten})") < ELEMENTS * 4 // 20


@pytest.mark.long
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
    """Strided gradients are read where they are stored: no copy of them either."""
    opt = FusedRAdam([parameter(layout)], backend="cpu")
    opt.step()
    assert allocated(opt) < 10_000


def test_the_reference_allocates() -> None:
    """The negative control: temporaries of the plain implementation show."""
    opt = FusedRAdam([parameter("row-major")], backend="reference")
    opt.step()
    assert allocated(opt) > 4_000_000


def advised(tensor: torch.Tensor) -> bool:
    """Whether the middle of a tensor's memory is under MADV_HUGEPAGE: the kernel marks its mapping "hg"."""
    middle, inside = tensor.data_ptr() + tensor.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin <= middle < end
        elif inside and first == "VmFlags:":
            return "hg" in rest
    raise AssertionError("no mapping holds the tensor")


@pytest.mark.long
@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="an advice that only Linux takes")
@pytest.mark.parametrize("flatten", [False, True], ids=["tensors", "flatten"])
def test_large_buffers_are_in_huge_pages(flatten: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for least in (memory.LEAST, 2**60):
        monkeypatch.setattr(memory, "LEAST", least)
        p = torch.nn.Parameter(torch.ones(64 * 2**20))  # beyond the threshold below which glibc keeps memory it had
        p.grad = torch.ones_like(p)
        opt = FusedRAdam([p], flatten=flatten)
        opt.step()
        state = opt.state[p]
        buffers = [state["exp_avg"], state["exp_avg_sq"], *([p, p.grad] if flatten else [])]
        found += [advised(buffer) for buffer in buffers]
        assert not advised(torch.ones(64 * 2**20))
    half = len(found) // 2
    assert found == [True] * half + [False] * half
