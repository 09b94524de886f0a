"""What a step starts on the GPU: one launch a bucket, whatever the number of tensors and groups."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bench.gpu import traces
from bench.workloads.cases import CASES
from tests.gpu import on_gpu

MODELS = {
    "1 tensor": [(100_003,)],
    "148 tensors": CASES["gpt2"].shapes,
    "10,000 tensors": CASES["small"].shapes,
}
COPIES = 2
"""At most so many copies per step: of gradient pointers, if too many for a launch's arguments, and of scalars."""


@pytest.fixture
def settled(backend: str) -> Callable[..., torch.optim.Optimizer]:
    """Makes an optimizer that has taken its first steps: what stays from step to step has been built."""
    # The first use of a profiler starts it, and could miss what comes with it.
    assert len(traces.record(lambda: torch.zeros(1000, device="cuda")).kernels) <= 1

    def make(shapes: list[tuple[int, ...]], **options: object) -> torch.optim.Optimizer:
        _, opt = on_gpu.model(shapes, backend, **options)
        for _ in range(7):
            opt.step()
        return opt

    return make


@pytest.mark.parametrize("flatten", [False, True], ids=["tensors", "flatten"])
@pytest.mark.parametrize("shapes", MODELS.values(), ids=list(MODELS))
def test_one_launch_a_step(shapes: list, flatten: bool, settled: Callable, record_property: Callable) -> None:
    trace = traces.record(settled(shapes, flatten=flatten).step)
    print(f"{len(trace.kernels)} launches, copies {trace.copies}, {trace.memsets} memsets")
    assert len(trace.kernels) == 1, trace.kernels
    assert len(trace.copies) <= COPIES, trace.copies
    assert trace.memsets == 0


@pytest.mark.parametrize("flatten", [False, True], ids=["tensors", "flatten"])
def test_groups_share_a_launch(flatten: bool, settled: Callable) -> None:
    trace = traces.record(settled(MODELS["148 tensors"][2:], groups=5, flatten=flatten).step)
    assert len(trace.kernels) == 1, trace.kernels


def test_steps_without_some_gradients_are_one_launch(backend: str) -> None:
    params, opt = on_gpu.model([(1000,)] * 6, backend)
    opt.step()
    params[1].grad = params[4].grad = None
    for _ in range(2):
        opt.step()
    assert len(traces.record(opt.step).kernels) == 1


def test_the_counting_counts() -> None:
    """The negative control: torch.optim's launches and a copy show."""
    traces.record(lambda: torch.zeros(1000, device="cuda"))
    params = [torch.nn.Parameter(torch.ones(10, device="cuda")) for _ in range(3)]
    for p in params:
        p.grad = torch.ones_like(p)
    opt = torch.optim.RAdam(params, foreach=True)
    opt.step()
    host = torch.ones(1000).pin_memory()
    trace = traces.record(lambda: (opt.step(), host.to("cuda", non_blocking=True)))
    assert len(trace.kernels) > 3
    assert len(trace.copies) >= 1
    assert trace.busy > 0


def test_kernels_run_on_the_current_stream(backend: str) -> None:
    """All on one stream, and on another one than the default's."""
    _, opt = on_gpu.model([(10_000,)] * 3, backend)
    opt.step()
    default = traces.record(opt.step).streams
    with torch.cuda.stream(torch.cuda.Stream()):
        opt.step()
        other = traces.record(opt.step).streams
    assert len(default) == len(other) == 1
    assert default != other
