"""Low-precision state on the GPU: after every step of `cuda` and `triton` the bits that `cpu` gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from radam_fused.backends.ops import OPERATORS
from tests.support.cuda_host import same_layout
from tests.support.helpers import one_ulp_up
from tests.support.state_formats import FORMATS, Case, Format

MANY = ["size_257", "size_3"] * 400
"""More addresses of gradients than a launch takes by value."""
INT8 = Format(torch.bfloat16, torch.bfloat16, torch.int8, None, stochastic=True)


def on_gpu(backend: str, rows_there: bool = False, zero_grads: bool = False) -> Callable[..., None]:
    """The backend's step for tensors on the CPU: on copies of the same layout, whose values it brings back."""

    def step(
        params: list[Tensor],
        grads: list[Tensor],
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        segments: Tensor,
        scalar_index: Tensor,
        rows: Tensor,
        _: bool,
        scales: Tensor | None,
        master: Tensor | None,
        stochastic: bool,
    ) -> None:
        here = [*params, exp_avg, exp_avg_sq, *(buffer for buffer in (scales, master) if buffer is not None)]
        there = {id(tensor): same_layout(tensor, "cuda") for tensor in here}
        grads_there = [same_layout(grad, "cuda") for grad in grads]
        OPERATORS[backend].step(
            [there[id(p)] for p in params],
            grads_there,
            there[id(exp_avg)],
            there[id(exp_avg_sq)],
            segments,
            scalar_index,
            rows.cuda() if rows_there else rows,
            zero_grads,
            there.get(id(scales)),
            there.get(id(master)),
            stochastic,
        )
        for tensor in here:
            tensor.copy_(there[id(tensor)])
        assert not zero_grads or not any(grad.any() for grad in grads_there)

    return step


def assert_same(form: Format, step: Callable[..., None], layouts: list[str] | None = None, steps: int = 9) -> None:
    expected = Case(form, layouts).run(OPERATORS["cpu"].step, steps)
    case = Case(form, layouts)
    found = case.run(step, steps)
    wrong = [name for name, a, b in zip(case.names(), found, expected, strict=True) if not torch.equal(a, b)]
    assert not wrong


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_gpu_equals_cpu(form: Format, backend: str) -> None:
    assert_same(form, on_gpu(backend))


@pytest.mark.parametrize("form", FORMATS[::4], ids=str)
def test_many_small_tensors(form: Format, backend: str) -> None:
    assert_same(form, on_gpu(backend), MANY, steps=2)


@pytest.mark.parametrize("form", FORMATS[1::4], ids=str)
def test_rows_on_the_gpu_and_gradients_cleared(form: Format, backend: str) -> None:
    """One of the steps is skipped, which clears gradients all the same."""
    assert_same(form, on_gpu(backend, rows_there=True, zero_grads=True), steps=5)


def test_one_ulp_is_noticed(backend: str) -> None:
    """The negative control: one scale of one block, one unit in the last place off."""
    step = on_gpu(backend)

    def spoilt(*arguments) -> None:
        step(*arguments)
        one_ulp_up(arguments[8], 1)

    with pytest.raises(AssertionError, match="scales"):
        assert_same(INT8, spoilt, steps=1)
