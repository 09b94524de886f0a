"""Tensor subclasses, wrappers of torch.func and copy-on-write tensors: stepped as by torch, or refused by type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.logging_tensor import LoggingTensor
from torch.testing._internal.two_tensor import TwoTensor

from radam_fused import FusedRAdam, step_in_backward
from radam_fused.tensor_kinds import is_copy_on_write
from tests.support.helpers import same_bits


class Named(Tensor):
    """A subclass that changes nothing."""


class Watched(Tensor):
    """A subclass that sees every operator, with memory of its own."""

    seen = 0

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Watched.seen += 1
        return super().__torch_dispatch__(function, types, args, kwargs or {})


class NamedParameter(nn.Parameter):
    pass


WRAPPERS: dict[str, Callable[[Tensor], Tensor]] = {
    "TwoTensor": lambda t: TwoTensor(t.clone(), t.clone()),
    "LoggingTensor": lambda t: LoggingTensor(t.clone()),
}
WITH_MEMORY: dict[str, Callable[[Tensor], Tensor]] = {
    "Named": lambda t: t.clone().as_subclass(Named),
    "Watched": lambda t: Tensor._make_subclass(Watched, t.clone()),
    "NamedParameter": lambda t: NamedParameter(t.clone()),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "cpu": {"backend": "cpu"},
    "reference": {"backend": "reference"},
    "flatten": {"flatten": True},
    "int8": {"state_dtype": torch.int8},
    "clipped": {"max_grad_norm": 0.1},
    "capturable": {"capturable": True},
    "zero_grads": {"zero_grads": True},
    "offload": {"offload": True},
}
VALUES = torch.linspace(-1, 1, 5000)


def steps(p: Tensor, gradient: Callable[[Tensor], Tensor], options: dict[str, Any]) -> Tensor:
    optimizer = FusedRAdam([torch.zeros(3), p], lr=0.1, **options)
    for t in range(8):
        p.grad = gradient(torch.sin(VALUES * (t + 1)))
        optimizer.step()
    return p.detach()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", WITH_MEMORY)
@pytest.mark.parametrize("what", ["parameter", "gradient", "both"])
def test_a_subclass_with_memory_is_stepped_once(what: str, kind: str, options: str) -> None:
    wrap, plain = WITH_MEMORY[kind], Tensor.clone
    expected = steps(VALUES.clone(), plain, OPTIONS[options])
    parameter = plain(VALUES) if what == "gradient" else wrap(VALUES)
    found = steps(parameter, plain if what == "parameter" else wrap, OPTIONS[options])
    assert same_bits(found.as_subclass(Tensor), expected)


@pytest.mark.parametrize(
    "wrap", [Tensor.clone, WITH_MEMORY["Named"], WITH_MEMORY["Watched"]], ids=["plain", "Named", "Watched"]
)
@pytest.mark.parametrize("what", ["lr", "grad_scale", "found_inf", "one of the gradients"])
def test_what_scalars_are_computed_from_may_be_a_subclass(what: str, wrap: Callable[[Tensor], Tensor]) -> None:
    """The scalars themselves are plain tensors, which the pointer path takes."""

    def made(name: str, value: float) -> Tensor:
        tensor = torch.tensor(value)
        return wrap(tensor) if what == name else tensor

    params = [torch.zeros(300), torch.ones(70)]
    params[1].grad_dtype = torch.bfloat16  # two dtypes: the norm takes lists
    optimizer = FusedRAdam(params, lr=made("lr", 0.1), capturable=True, max_grad_norm=0.5)
    optimizer.grad_scale, optimizer.found_inf = made("grad_scale", 2.0), made("found_inf", 0.0)
    for _ in range(8):
        params[0].grad = torch.full((300,), 1.0)
        params[1].grad = torch.full((70,), 3.0, dtype=torch.bfloat16)
        if what == "one of the gradients":
            params[1].grad = wrap(params[1].grad)
        optimizer.step()
    assert type(optimizer.last_grad_norm) is Tensor
    assert float(optimizer.last_grad_norm) == pytest.approx((300 * 0.25 + 70 * 2.25) ** 0.5, rel=1e-6)
    assert (params[0] < 0).all()


@pytest.mark.parametrize("options", [*OPTIONS, "in backward"])
@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_wrapper_is_refused_by_its_type(kind: str, options: str) -> None:
    p = nn.Parameter(WRAPPERS[kind](VALUES))
    with pytest.raises(TypeError, match=rf"param_groups\[0\]\['params'\]\[1\] is a .*{kind}, a tensor subclass"):
        FusedRAdam([torch.zeros(3), p], **OPTIONS.get(options, {}))
    frozen = WRAPPERS[kind](VALUES)
    p = torch.zeros(3)
    optimizer = FusedRAdam([p, frozen], **OPTIONS.get(options, {}))
    if options == "in backward":
        step_in_backward(optimizer)
    for _ in range(2):
        p.grad = torch.ones(3)
        optimizer.step()
    before = p.clone()
    p.grad = torch.ones(3)
    frozen.grad = WRAPPERS[kind](VALUES)
    with pytest.raises(TypeError, match=rf"param_groups\[0\]\['params'\]\[1\] is a .*{kind}, a tensor subclass"):
        optimizer.step()
    assert same_bits(p, before)
    assert float(optimizer.state[p]["step"]) == 2


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize("late", [False, True])
def test_a_wrapper_as_a_gradient_is_refused_before_anything_is_written(late: bool, kind: str, options: str) -> None:
    first, p, other = torch.zeros(7), VALUES.clone(), torch.zeros(3, dtype=torch.float64)
    params = [first, p] if options in ("int8", "flatten") else [first, p, other]
    optimizer = FusedRAdam(params, **OPTIONS[options])

    def give() -> None:
        for q in params:
            q.grad = torch.ones_like(q)

    for _ in range(2 * late):
        give()
        optimizer.step()
    before = [q.clone() for q in params]
    give()
    p.grad = WRAPPERS[kind](torch.ones(5000))
    with pytest.raises(TypeError, match=rf"gradient of param_groups\[0\]\['params'\]\[1\] is a .*{kind}, a tensor sub"):
        optimizer.step()
    assert all(same_bits(a, b) for a, b in zip(params, before, strict=True))
    if late:
        assert float(optimizer.state[first]["step"]) == 2
    give()
    optimizer.step()
    assert float(optimizer.state[p]["step"]) == 2 * late + 1


def test_differentiable_takes_wrappers() -> None:
    p = TwoTensor(torch.zeros(3), torch.ones(3))
    q = torch.zeros(3)
    for one in (p, q):
        optimizer = FusedRAdam([one], differentiable=True)
        for _ in range(8):
            one.grad = torch.ones(3) if one is q else TwoTensor(torch.ones(3), torch.ones(3))
            optimizer.step()
    assert same_bits(p.a, q)


def test_a_parameter_swapped_for_a_wrapper_is_refused() -> None:
    p = nn.Parameter(torch.zeros(3))
    optimizer = FusedRAdam([p])
    p.grad = torch.ones(3)
    optimizer.step()
    p.grad = None
    torch.utils.swap_tensors(p, nn.Parameter(TwoTensor(torch.zeros(3), torch.zeros(3))))
    p.grad = TwoTensor(torch.ones(3), torch.ones(3))
    with pytest.raises(TypeError, match="TwoTensor"):
        optimizer.step()
    assert p.a[0] == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_parameter_swapped_for_a_plain_one_is_stepped(backend: str) -> None:
    def run(swap: bool) -> Tensor:
        p, q = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.full((3,), 5.0))
        optimizer = FusedRAdam([p], lr=0.1, backend=backend)
        for t in range(8):
            if t == 4:
                p.grad = None
                if swap:
                    torch.utils.swap_tensors(p, q)
                else:
                    p.data = q.data
            p.grad = torch.ones(3)
            optimizer.step()
        return p.detach()

    assert same_bits(run(True), run(False))


def test_a_gradient_that_a_collective_still_fills_is_completed() -> None:
    from torch.distributed._functional_collectives import AsyncCollectiveTensor

    for options in ({}, {"flatten": True}, {"backend": "reference"}, {"max_grad_norm": 1.0}):
        p, q = torch.zeros(3), torch.zeros(3)
        ours, other = FusedRAdam([p], **options), FusedRAdam([q], **options)
        for _ in range(7):
            p.grad, q.grad = AsyncCollectiveTensor(torch.ones(3)), torch.ones(3)
            ours.step()
            other.step()
        assert same_bits(p, q)


# torch.func.


@pytest.mark.parametrize("options", OPTIONS)
def test_inside_vmap_an_error_names_the_tensor(options: str) -> None:
    def inside(x: Tensor) -> Tensor:
        p = x.clone()
        FusedRAdam([p], **OPTIONS[options])
        p.grad = torch.ones_like(p)
        FusedRAdam([p], **OPTIONS[options]).step()
        return p

    with pytest.raises(TypeError, match=r"param_groups\[0\]\['params'\]\[0\] is a (batch|wrapper) of torch\.func"):
        torch.vmap(inside)(torch.ones(4, 3))
    p = torch.ones(3)
    optimizer = FusedRAdam([p], **OPTIONS[options])
    p.grad = torch.ones(3)
    optimizer.step()
    before = p.clone()

    def gradient(x: Tensor) -> Tensor:
        p.grad = x
        optimizer.step()
        return x

    with pytest.raises(TypeError, match=r"gradient of param_groups\[0\]\['params'\]\[0\] is a batch of torch\.func"):
        torch.vmap(gradient)(torch.ones(4, 3))
    assert same_bits(p, before)


def test_inside_vmap_differentiable_works() -> None:
    def inside(x: Tensor) -> Tensor:
        p = x.clone()
        p.grad = torch.ones_like(p)
        optimizer = FusedRAdam([p], lr=0.1, differentiable=True)
        for _ in range(7):
            optimizer.step()
        return p

    assert same_bits(torch.vmap(inside)(torch.ones(4, 3))[1], inside(torch.ones(3)))


@pytest.mark.parametrize("options", OPTIONS)
def test_functional_calls_and_stacked_models_train_as_modules(options: str) -> None:
    x = torch.linspace(-1, 1, 6).view(2, 3)

    def weights() -> dict[str, Tensor]:
        return {
            "weight": torch.linspace(-1, 1, 6).view(2, 3).requires_grad_(),
            "bias": torch.zeros(2).requires_grad_(),
        }

    module = nn.Linear(3, 2)

    def run(loss: Callable[[dict[str, Tensor]], Tensor], params: dict[str, Tensor]) -> Tensor:
        optimizer = FusedRAdam(params.values(), lr=0.1, **OPTIONS[options])
        for _ in range(7):
            optimizer.zero_grad()
            loss(params).backward()
            optimizer.step()
        return params["weight"].detach()

    def call(p: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(module, p, (x,))

    expected = run(lambda p: (x @ p["weight"].T + p["bias"]).square().sum(), weights())
    assert torch.allclose(run(lambda p: call(p).square().sum(), weights()), expected, atol=1e-6)
    if options == "clipped":  # by the norm of all models together
        return
    stacked = {k: torch.stack([v.detach()] * 3).requires_grad_() for k, v in weights().items()}
    found = run(lambda p: torch.vmap(call)(p).square().sum(), stacked)
    assert torch.allclose(found[1], expected, atol=1e-6)


# Copy-on-write.


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("what", ["parameter", "gradient", "snapshot", "state"])
def test_copy_on_write_tensors(what: str, options: str) -> None:
    """What shares memory with a parameter, a gradient or a moment lazily keeps its values."""

    def run(lazy: bool) -> list[Tensor]:
        values = VALUES.clone()
        p = torch._lazy_clone(values) if lazy and what == "parameter" else values.clone()
        grads, snapshots = [], []
        optimizer = FusedRAdam([torch.zeros(3), p], lr=0.1, **OPTIONS[options])
        for t in range(8):
            grad = torch.sin(VALUES * (t + 1))
            p.grad = torch._lazy_clone(grad) if lazy and what == "gradient" else grad.clone()
            grads.append(grad)
            if lazy and what == "snapshot":
                snapshots.append((lazily(p), p.clone()))
            if lazy and what == "state" and t > 0:
                snapshots += [(lazily(value), value.clone()) for value in optimizer.state[p].values()]
            optimizer.step()
        assert all(same_bits(lazy_one, copied) for lazy_one, copied in snapshots)
        assert all(same_bits(grad, torch.sin(VALUES * (t + 1))) for t, grad in enumerate(grads))
        assert same_bits(values, VALUES)
        return [p, *optimizer.state[p].values()]

    expected, found = run(False), run(True)
    assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", WITH_MEMORY)
def test_a_lazy_copy_is_known_whatever_its_type(kind: str) -> None:
    """Of a type that sees every operator torch 2.15 does not say it; asking for it calls none."""
    values, Watched.seen = torch.ones(3), 0
    assert is_copy_on_write(torch._lazy_clone(values))
    assert not is_copy_on_write(WITH_MEMORY[kind](values))
    seen = Watched.seen
    assert is_copy_on_write(Tensor._make_subclass(Watched, torch._lazy_clone(values)))
    assert Watched.seen == seen


def lazily(tensor: Tensor) -> Tensor:
    try:
        return torch._lazy_clone(tensor)
    except RuntimeError:  # memory that torch did not allocate cannot be shared so
        return tensor.clone()
