"""What a step costs the host, in counts that no machine changes: calls, operators, allocations.

Times would depend on the machine; these only depend on the code. Each bound is what a step takes today, rounded up a
little; what must not grow with the number of tensors is compared between two numbers of them.
"""

from __future__ import annotations

import sys
import tracemalloc
from collections import Counter
from types import FrameType
from typing import Any

import pytest
import torch
from torch.profiler import profile

from bench.harness.measure import no_collection
from radam_fused import FusedRAdam

LAYOUTS = pytest.mark.parametrize("flatten", [False, True], ids=["tensors", "flatten"])
WARM = 8
"""Steps after which everything lazy has been built and RAdam is rectified."""


def optimizer(tensors: int, groups: int = 1, make: Any = FusedRAdam, **options: object) -> torch.optim.Optimizer:
    """An optimizer of CPU tensors, five elements each, that has taken its first steps."""
    params = [torch.nn.Parameter(torch.full((5,), float(k))) for k in range(tensors)]
    for param in params:
        param.grad = torch.ones(5)
    if make is FusedRAdam:
        options.setdefault("backend", "cpu")
    opt = make([{"params": params[k::groups]} for k in range(groups)], **options)
    for _ in range(WARM):
        opt.step()
    return opt


def calls(opt: torch.optim.Optimizer) -> Counter[str]:
    """How many Python functions ("call") and how many in C ("c_call") a step calls."""
    found: Counter[str] = Counter()

    def note(frame: FrameType, event: str, argument: object) -> None:
        found[event] += 1

    # r_t of a step is computed once in a process: another optimizer takes that step before.
    optimizer(1).step()
    before = sys.getprofile()
    with no_collection():
        sys.setprofile(note)
        try:
            opt.step()
        finally:
            sys.setprofile(before)
    return found


@LAYOUTS
def test_calls_do_not_grow_with_the_number_of_tensors(flatten: bool) -> None:
    """Parameters and gradients are looked at in C++, under `flatten` above 512 tensors a few of them in turns."""
    few, many = (calls(optimizer(n, flatten=flatten)) for n in (600, 1200))
    for event in ("call", "c_call"):
        assert few[event] == many[event]
    assert many["call"] <= (38 if flatten else 33)
    assert many["c_call"] <= (38 if flatten else 31)  # one per buffer counts its references


def test_calls_of_a_step_that_clips() -> None:
    found = calls(optimizer(10, max_grad_norm=1.0))
    assert found["call"] <= 52
    assert found["c_call"] <= 45


def test_calls_of_a_group() -> None:
    """A group costs a look at its learning rate; its scalars are computed in C++."""
    one, many = (calls(optimizer(200, groups)) for groups in (1, 101))
    assert (many["call"] - one["call"]) / 100 <= 1
    assert (many["c_call"] - one["c_call"]) / 100 <= 1


def test_torch_calls_more_for_each_tensor() -> None:
    """The negative control: the same counting sees a loop over parameters in Python."""
    few, many = (calls(optimizer(n, make=torch.optim.RAdam)) for n in (100, 200))
    assert many["c_call"] - few["c_call"] > 10 * 100


def operators(opt: torch.optim.Optimizer) -> tuple[Counter[str], int]:
    """The operators of a step by name, and how many of them allocated or freed memory for tensors."""
    with profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as taken:
        opt.step()
    events = taken.events() or []
    names = Counter(event.name for event in events)
    memory = sum(event.self_cpu_memory_usage > 0 for event in events)
    return names, memory


@LAYOUTS
@pytest.mark.parametrize(("tensors", "groups"), [(1, 1), (1000, 1), (1000, 50)])
def test_one_operator_a_step(tensors: int, groups: int, flatten: bool) -> None:
    """One launch for the whole bucket, and besides it only its scalars and the group's step counts."""
    names, _ = operators(optimizer(tensors, groups, flatten=flatten))
    steps = {name: count for name, count in names.items() if name.startswith("radam_fused::")}
    assert sum(steps.values()) == 1, names
    assert sum(count for name, count in names.items() if name.startswith("aten::")) <= 10 + 4 * groups, names


def test_two_dtypes_are_two_operators() -> None:
    """The negative control: a second bucket shows."""
    params = [torch.nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in (torch.float32, torch.float64)]
    for param in params:
        param.grad = torch.ones_like(param)
    opt = FusedRAdam(params, backend="cpu")
    opt.step()
    names, _ = operators(opt)
    assert sum(count for name, count in names.items() if name.startswith("radam_fused::")) == 2


@LAYOUTS
def test_torch_allocates_as_often_for_many_tensors(flatten: bool) -> None:
    """The scalars, and a step count: two allocations of a few bytes."""
    _, few = operators(optimizer(10, flatten=flatten))
    _, many = operators(optimizer(1000, flatten=flatten))
    assert few == many <= 3


def peak(opt: torch.optim.Optimizer) -> int:
    """Bytes that Python holds at most during a step beyond what it held before."""
    with no_collection():
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            opt.step()
            return tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()


@LAYOUTS
def test_python_allocates_nothing_for_a_tensor(flatten: bool) -> None:
    few, many = (peak(optimizer(n, flatten=flatten)) for n in (600, 1200))
    assert (many - few) / 600 < 1
    assert few <= 20_000


def test_python_allocations_of_torch_show() -> None:
    """The negative control."""
    few, many = (peak(optimizer(n, make=torch.optim.RAdam)) for n in (100, 200))
    assert (many - few) / 100 > 30
