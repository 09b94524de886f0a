"""What a step of the Triton backend costs the host, in counts, with a stand-in for the driver that launches nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from radam_fused.step import pointer_table
from tests.codegen.test_counts import LAYOUTS, calls, optimizer, peak
from tests.support.fake_launch import Kernel, replacing_driver


@pytest.fixture(autouse=True)
def kernels() -> Iterator[dict[str, Kernel]]:
    with replacing_driver(runs=False) as names:
        yield names


@LAYOUTS
def test_calls_do_not_grow_with_the_number_of_tensors(flatten: bool, kernels: dict[str, Kernel]) -> None:
    """Tensors are looked at in C++, the compiled kernel is called directly: some 25 calls more than the cpu backend."""
    few, many = (calls(optimizer(n, flatten=flatten, backend="triton")) for n in (600, 1200))
    for event in ("call", "c_call"):
        assert few[event] == many[event]
    assert many["call"] <= 79
    assert many["c_call"] <= (92 if flatten else 84)
    assert kernels["step_kernel"].ordinary <= 4  # of 18 launches: the first of all, the first of each plan


@LAYOUTS
def test_calls_of_a_step_that_clips(flatten: bool, kernels: dict[str, Kernel]) -> None:
    """The gradients' squares, the scalars and the step are three launches, none with Python for a tensor."""
    few, many = (calls(optimizer(n, flatten=flatten, backend="triton", max_grad_norm=1.0)) for n in (600, 1200))
    for event in ("call", "c_call"):
        assert few[event] == many[event]
    assert many["call"] <= 103
    assert many["c_call"] <= 95
    for name in ("grad_norm_kernel", "scalars_kernel", "step_kernel"):
        assert kernels[name].ordinary <= 4


@LAYOUTS
def test_python_allocates_nothing_for_a_tensor(flatten: bool) -> None:
    few, many = (peak(optimizer(n, flatten=flatten, backend="triton")) for n in (600, 1200))
    assert (many - few) / 600 < 1


def test_tensor_lists_call_more_for_each_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: what a step through the dispatcher costs."""
    monkeypatch.setattr(pointer_table, "can_bypass_dispatcher", lambda: False)
    monkeypatch.setattr("radam_fused.step.collect.can_bypass_dispatcher", lambda: False)
    few, many = (calls(optimizer(n, backend="triton")) for n in (100, 200))
    assert many["c_call"] - few["c_call"] >= 100
    few, many = (calls(optimizer(n, backend="triton", max_grad_norm=1.0)) for n in (100, 200))
    assert many["c_call"] - few["c_call"] >= 100
