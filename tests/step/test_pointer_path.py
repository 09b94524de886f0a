"""The pointer path of a step over many plain tensors gives the bits of the tensor-list path."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor

from radam_fused import FusedRAdam
from radam_fused.cpp_helpers import HAS_POINTER_PATH
from radam_fused.step.pointer_table import HOLD_GIL_UP_TO
from tests.support.helpers import same_bits
from tests.support.pointer_path import STEPS, parameters

DTYPES = {
    "fp32": (torch.float32, torch.float32),
    "fp64": (torch.float64, torch.float64),
    "bf16": (torch.bfloat16, torch.bfloat16),
    "fp16-grad_fp32": (torch.float16, torch.float32),
    "fp32-grad_bf16": (torch.float32, torch.bfloat16),
}


def trained(by_pointers: bool, dtype: torch.dtype, grad_dtype: torch.dtype, **options: object) -> list[Tensor]:
    params = parameters(dtype)
    opt = FusedRAdam(
        [{"params": params[:2], "lr": 0.1}, {"params": params[2:]}], backend="cpu", weight_decay=0.1, **options
    )
    for t in range(STEPS):
        generator = torch.Generator().manual_seed(t)
        for p in params:
            if dtype != grad_dtype:
                p.grad_dtype = grad_dtype
            if p.grad is None or not options.get("zero_grads"):
                p.grad = torch.zeros_like(p, dtype=grad_dtype)
            p.grad.copy_(torch.randn(p.shape, generator=generator))
        if by_pointers:
            opt.step()
        else:
            with torch.profiler.profile():
                opt.step()
    return [tensor for p in params for tensor in (p.detach(), p.grad, *opt.state[p].values())]


def test_this_torch_has_what_it_takes() -> None:
    assert HAS_POINTER_PATH


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0, "zero_grads": True}], ids=["", "clip-zero_grads"])
@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=list(DTYPES))
def test_equals_the_lists(dtypes: tuple[torch.dtype, torch.dtype], options: dict, pointer_calls: list[bool]) -> None:
    quick = trained(True, *dtypes, **options)
    assert not pointer_calls[0]  # there is no plan yet
    assert all(pointer_calls[2:])  # one more is made where a device begins to count
    pointer_calls.clear()
    lists = trained(False, *dtypes, **options)
    assert not any(pointer_calls)
    assert all(same_bits(a, b) for a, b in zip(quick, lists, strict=True))
    # The negative control.
    assert not all(same_bits(a, b) for a, b in zip(quick, trained(True, *dtypes, maximize=True), strict=True))


class Subclass(torch.Tensor):
    """Of a gradient's own memory."""


CHANGES: dict[str, Callable[[nn.Parameter], None]] = {
    "gradient_missing": lambda p: setattr(p, "grad", None),
    "gradient_transposed": lambda p: setattr(p, "grad", torch.ones(5, 17).t()),
    "gradient_expanded": lambda p: setattr(p, "grad", torch.ones(1).expand(17, 5)),
    "gradient_in_a_wrapper": lambda p: setattr(p, "grad", AsyncCollectiveTensor(torch.ones(17, 5))),
    "parameter_transposed": lambda p: setattr(p, "data", p.data.t().contiguous().t()),
}


def with_one_change(change: Callable[[nn.Parameter], None]) -> bool:
    """Whether `cpu` gives the bits of `reference`, with a change to the fourth parameter in the sixth step."""
    results = []
    for backend in ("cpu", "reference"):
        params = parameters(torch.float32)
        opt = FusedRAdam(params, backend=backend)
        for t in range(STEPS):
            for p in params:
                p.grad = torch.full_like(p, 0.1 * (t + 1))
            if t == 5:
                change(params[3])
            opt.step()
        results.append(params)
    return all(same_bits(a.detach(), b.detach()) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_what_is_not_plain_takes_the_tensor_list_path(change: Callable, pointer_calls: list[bool]) -> None:
    assert with_one_change(change)
    assert pointer_calls[:6] == [False] + [True] * 4 + [False]


@pytest.mark.parametrize(
    "alike",
    [
        lambda p: setattr(p, "grad", torch.ones(17, 5).as_subclass(Subclass)),
        lambda p: setattr(p, "grad", torch.ones(17, 5, 2)[..., 0].clone()),
        lambda p: setattr(p, "grad", torch.ones(100)[10:95].view(17, 5)),
    ],
    ids=["subclass", "clone", "part_of_a_buffer"],
)
def test_what_is_stored_as_its_parameter_is_plain(alike: Callable, pointer_calls: list[bool]) -> None:
    assert with_one_change(alike)
    assert pointer_calls[:STEPS] == [False] + [True] * (STEPS - 1)


def test_a_dense_order_of_its_own_is_plain(pointer_calls: list[bool]) -> None:
    """channels_last parameters with gradients alike, and a dimension of one place whose stride says nothing."""
    results = []
    for backend in ("cpu", "reference"):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last)
        params = [nn.Parameter(images), nn.Parameter(torch.ones(7, 1))]
        opt = FusedRAdam(params, backend=backend)
        for _ in range(STEPS):
            params[0].grad = torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last)
            params[1].grad = torch.randn(1, 7, generator=generator).t()
            opt.step()
        results.append(params)
    assert pointer_calls[:STEPS] == [False] + [True] * (STEPS - 1)
    assert all(same_bits(a.detach(), b.detach()) for a, b in zip(*results, strict=True))


def test_gradients_outlive_a_long_step(pointer_calls: list[bool]) -> None:
    """A step too long to keep other threads waiting holds the gradients that one of these may replace."""
    p = nn.Parameter(torch.zeros(HOLD_GIL_UP_TO + 1))
    opt = FusedRAdam([p], backend="cpu")
    p.grad = torch.ones_like(p)
    for _ in range(2):
        opt.step()
    stop = threading.Event()
    replaced = 0

    def replace() -> None:
        nonlocal replaced
        while not stop.is_set():
            p.grad = torch.ones_like(p)  # the setter puts the new tensor in place before the old one is freed
            replaced += 1

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(20):
            opt.step()
    finally:
        stop.set()
        thread.join()
    assert replaced > 0
    assert pointer_calls == [False] + [True] * 21
    expected = nn.Parameter(torch.zeros(1))
    expected.grad = torch.ones(1)
    same = FusedRAdam([expected], backend="reference")
    for _ in range(22):
        same.step()
    assert same_bits(p.detach()[-1:], expected.detach())
