"""The quicker way of a step over many plain tensors: by addresses, with the bits and the errors of the way by lists."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor

from radam_fused import FusedRAdam
from radam_fused.cpp_helpers import DESCRIBES
from radam_fused.step import run as launching
from radam_fused.step.launch import Launch
from radam_fused.step.pointer_table import BRIEF
from tests.support.helpers import same_bits

STEPS = 8
SHAPES = ((3,), (), (0,), (17, 5), (4097,), (2, 3, 4))
DTYPES = {
    "fp32": (torch.float32, torch.float32),
    "fp64": (torch.float64, torch.float64),
    "bf16": (torch.bfloat16, torch.bfloat16),
    "fp16-grad_fp32": (torch.float16, torch.float32),
    "fp32-grad_bf16": (torch.float32, torch.bfloat16),
}


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each attempt at a launch, whether it was by addresses and could go that way."""
    seen: list[bool] = []
    call = launching._call

    def noting(launch: Launch, *rest: Any) -> bool:
        stepped = call(launch, *rest)
        seen.append(stepped and launch.addresses is not None)
        return stepped

    monkeypatch.setattr(launching, "_call", noting)
    return seen


def parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def trained(by_addresses: bool, dtype: torch.dtype, grad_dtype: torch.dtype, **options: object) -> list[Tensor]:
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
        if by_addresses:
            opt.step()
        else:
            with torch.profiler.profile():
                opt.step()
    return [tensor for p in params for tensor in (p.detach(), p.grad, *opt.state[p].values())]


def test_this_torch_has_what_it_takes() -> None:
    assert DESCRIBES


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0, "zero_grads": True}], ids=["", "clip-zero_grads"])
@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=list(DTYPES))
def test_equals_the_lists(dtypes: tuple[torch.dtype, torch.dtype], options: dict, ways: list[bool]) -> None:
    quick = trained(True, *dtypes, **options)
    assert not ways[0]  # there is no plan yet
    assert all(ways[2:])  # one more is made where a device begins to count
    ways.clear()
    lists = trained(False, *dtypes, **options)
    assert not any(ways)
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
def test_what_is_not_plain_goes_by_lists(change: Callable, ways: list[bool]) -> None:
    assert with_one_change(change)
    assert ways[:6] == [False] + [True] * 4 + [False]


@pytest.mark.parametrize(
    "alike",
    [
        lambda p: setattr(p, "grad", torch.ones(17, 5).as_subclass(Subclass)),
        lambda p: setattr(p, "grad", torch.ones(17, 5, 2)[..., 0].clone()),
        lambda p: setattr(p, "grad", torch.ones(100)[10:95].view(17, 5)),
    ],
    ids=["subclass", "clone", "part_of_a_buffer"],
)
def test_what_lies_as_its_parameter_does_is_plain(alike: Callable, ways: list[bool]) -> None:
    assert with_one_change(alike)
    assert ways[:STEPS] == [False] + [True] * (STEPS - 1)


def test_a_dense_order_of_its_own_is_plain(ways: list[bool]) -> None:
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
    assert ways[:STEPS] == [False] + [True] * (STEPS - 1)
    assert all(same_bits(a.detach(), b.detach()) for a, b in zip(*results, strict=True))


def test_gradients_outlive_a_long_step(ways: list[bool]) -> None:
    """A step too long to keep other threads waiting holds the gradients that one of these may replace."""
    p = nn.Parameter(torch.zeros(BRIEF + 1))
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
    assert ways == [False] + [True] * 21
    expected = nn.Parameter(torch.zeros(1))
    expected.grad = torch.ones(1)
    same = FusedRAdam([expected], backend="reference")
    for _ in range(22):
        same.step()
    assert same_bits(p.detach()[-1:], expected.detach())


LAZY: dict[str, tuple[Callable[[], Tensor], float]] = {
    "negative": (lambda: torch.tensor([1 + 2j]).conj().imag, -2.0),
    "negative_scalar": (lambda: torch.tensor(1 + 2j).conj().imag, -2.0),
    "zero": (lambda: torch._efficientzerotensor((1,)), 0.0),
    "view_of_more": (lambda: torch.arange(4.0)[2:3], 2.0),
}


@pytest.mark.parametrize(("lazy", "value"), LAZY.values(), ids=list(LAZY))
def test_gradient_that_is_not_what_lies_in_memory(lazy: Callable[[], Tensor], value: float, ways: list[bool]) -> None:
    """Row-major by their strides, but torch negates them as it reads, or has no memory for them."""
    results = []
    for literal in (False, True):
        p = nn.Parameter(torch.ones(lazy().shape))
        opt = FusedRAdam([p], backend="cpu")
        first_way = []
        for t in range(STEPS):
            grad = torch.full_like(p, value) if literal or t < 4 else lazy()
            assert grad.is_contiguous()
            p.grad = grad
            ways.clear()
            opt.step()
            first_way.append(ways[0])  # a second launch follows where the operator wants the gradient written out
        results.append(p.detach())
        plain = literal or lazy is LAZY["view_of_more"][0]
        assert first_way == [False] + [True] * 3 + [plain] * (STEPS - 4)
    assert same_bits(*results)
    # The negative control: the other sign shows.
    p = nn.Parameter(torch.ones(lazy().shape))
    p.grad = torch.full_like(p, -value or 1.0)
    FusedRAdam([p], backend="cpu").step()
    assert not same_bits(p.detach(), results[0])


BROKEN: dict[str, tuple[Callable[[nn.Parameter], None], type[Exception], str]] = {
    "sparse": (lambda p: setattr(p, "grad", torch.ones(17, 5).to_sparse()), RuntimeError, "sparse"),
    "moved": (lambda p: setattr(p, "data", torch.ones(5, 17)), ValueError, "is now"),
    "dtype": (lambda p: setattr(p, "data", p.data.double()), TypeError, "is now torch.float64"),
}


@pytest.mark.parametrize(("spoil", "error", "message"), BROKEN.values(), ids=list(BROKEN))
def test_errors_are_those_of_the_lists(spoil: Callable, error: type[Exception], message: str) -> None:
    params = parameters(torch.float32)
    opt = FusedRAdam(params, backend="cpu")
    for _ in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        opt.step()
    params[3].grad = None
    spoil(params[3])
    if params[3].grad is None:
        params[3].grad = torch.ones_like(params[3])
    before = [p.detach().clone() for p in params]
    with pytest.raises(error, match=message):
        opt.step()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert opt.state[params[0]]["step"] == 2


@pytest.mark.parametrize("brief", [True, False], ids=["alone", "beside_other_threads"])
def test_an_error_of_the_operator_says_what_it_says(brief: bool) -> None:
    params = parameters(torch.float32)
    opt = FusedRAdam(params, backend="cpu")
    for p in params:
        p.grad = torch.ones_like(p)
    for _ in range(2):
        opt.step()
    plan = opt._placement.buckets[0].whole_plan()
    table, exp_avg, exp_avg_sq, *rest = plan.addresses._before
    plan.addresses._before = table, exp_avg, exp_avg_sq[1:], *rest
    plan.addresses._brief = brief
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match="exp_avg and exp_avg_sq must be flat buffers of one size"):
        opt.step()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert opt.state[params[0]]["step"] == 2


def test_nothing_is_hidden_from_a_dispatch_mode() -> None:
    """Where somebody looks at operators, they see the parameters that are written."""

    class Looking(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    params = parameters(torch.float32)
    opt = FusedRAdam(params, backend="cpu")
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    with Looking():
        opt.step()
    assert "radam_fused.step_native.default" in seen


def test_version_counters_rise() -> None:
    params = parameters(torch.float32)
    opt = FusedRAdam(params, backend="cpu", zero_grads=True)
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    before = [(p._version, p.grad._version) for p in params]
    opt.step()
    assert [(p._version, p.grad._version) for p in params] == [(a + 1, b + 1) for a, b in before]


def test_counts_under_a_dispatch_mode_are_an_operator() -> None:
    """A mode that looks at operators sees that the counts are written; else no operator is needed for it."""
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    opt = FusedRAdam([p], backend="cpu")
    for _ in range(2):
        opt.step()
    seen = []

    class Looking(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Looking():
        opt.step()
    assert "aten.add_.Tensor" in seen
    opt.step()
    assert opt.state[p]["step"] == 4
