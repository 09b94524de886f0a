"""Parameters that share memory: one after the other, as torch.optim steps them, and the same in every run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam, step_in_backward
from radam_fused.numerics import overlaps
from tests.support.helpers import same_bits

N = 1 << 18
"""Elements: enough for several threads, so that two segments over one memory would race."""

SHARED: dict[str, Callable[[Tensor], list[Tensor]]] = {
    "whole": lambda base: [base, base.view(-1)],
    "three": lambda base: [base, base.view(-1), base.view(2, -1)],
    "part": lambda base: [base, base[: N // 2]],
    "halves meet": lambda base: [base[: N // 2 + 100], base[N // 2 :]],
    "transposed": lambda base: [base.view(512, -1), base.view(512, -1).t()],
    "rows and a column": lambda base: [base.view(512, -1), base.view(512, -1)[:, 3]],
    "chain": lambda base: [base[: N // 2], base[N // 4 : 3 * N // 4], base[N // 2 :]],
    "reversed": lambda base: [base[N // 2 :], base],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "decayed": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "clipped": {"max_grad_norm": 0.5},
    "capturable": {"capturable": True},
    "offload": {"offload": True},
    "reference": {"backend": "reference"},
}


def trained(views: Callable[[Tensor], list[Tensor]], make: Callable[..., Any], steps: int = 7) -> Tensor:
    base = torch.sin(torch.arange(N) * 0.37)
    params = [nn.Parameter(view) for view in views(base)]
    step = make(params)
    for t in range(steps):
        for k, p in enumerate(params):
            p.grad = torch.sin(torch.arange(p.numel()) * (0.1 * t + 1) + k).view_as(p)
        step()
    return base


def together(options: dict[str, Any]) -> Callable[..., Any]:
    return lambda params: FusedRAdam(params, lr=0.01, **options).step


def one_optimizer_each(options: dict[str, Any]) -> Callable[..., Any]:
    """The expected result: each parameter stepped alone, in order."""

    def make(params: list[Tensor]) -> Callable[[], None]:
        optimizers = [FusedRAdam([p], lr=0.01, **options) for p in params]

        def step() -> None:
            for optimizer in optimizers:
                optimizer.step()

        return step

    return make


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shared", SHARED)
def test_one_after_the_other(shared: str, options: str) -> None:
    given = OPTIONS[options]
    found = [trained(SHARED[shared], together(given)) for _ in range(1 if options == "reference" else 3)]
    assert all(same_bits(found[0], other) for other in found[1:])
    if options != "clipped":  # whose norm is of all together
        assert same_bits(found[0], trained(SHARED[shared], one_optimizer_each(given)))


def test_as_torch_does() -> None:
    ours = trained(SHARED["whole"], together({}))
    theirs = trained(SHARED["whole"], lambda params: torch.optim.RAdam(params, lr=0.01, foreach=False).step)
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert not torch.allclose(ours, trained(lambda base: [base], together({})), atol=1e-3)  # the other one shows


@pytest.mark.parametrize("where", ["groups", "added", "late gradient", "two dtypes", "in backward", "loaded"])
def test_wherever_the_two_are(where: str) -> None:
    def run() -> Tensor:
        base = torch.sin(torch.arange(N) * 0.37)
        a, b = nn.Parameter(base), nn.Parameter(base.view(-1))
        if where == "two dtypes":
            b = nn.Parameter(base.view(torch.bfloat16))
        first: list[Any] = [{"params": [a]}, {"params": [b], "lr": 0.02}] if where == "groups" else [a, b]
        optimizer = FusedRAdam([a] if where == "added" else first, lr=0.01)
        handle = step_in_backward(optimizer) if where == "in backward" else None
        for t in range(7):
            if t == 2 and where == "added":
                optimizer.add_param_group({"params": [b], "lr": 0.02})
            if t == 3 and where == "loaded":
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            if handle is not None:
                (a * torch.cos(base.detach()) + 2 * b).sum().backward()
            else:
                a.grad = torch.sin(base * t)
                if not (where == "late gradient" and t < 2) and not (where == "added" and t < 2):
                    b.grad = torch.cos(base.view(b.dtype)[: b.numel()] * t).view_as(b).to(b.dtype)
            optimizer.step()
        return base

    found = [run() for _ in range(3)]
    assert all(same_bits(found[0], other) for other in found[1:])


@pytest.mark.parametrize("path", ["pointers", "lists"])
@pytest.mark.parametrize("how", ["data", "set_"])
def test_tied_after_the_first_step_they_are_refused_by_name_until_laid_out_again(how: str, path: str) -> None:
    a, b, c = (nn.Parameter(torch.linspace(-1, 1, N).view(512, -1) + k) for k in range(3))
    optimizer = FusedRAdam({"first": a, "second": b, "third": c}.items(), lr=0.01)

    def step() -> None:
        for p in (a, b, c):
            p.grad = torch.ones_like(p)
            if path == "lists":
                p.grad = torch.ones(p.shape[::-1]).t()
        optimizer.step()

    for _ in range(3):
        step()
    if how == "data":
        c.data = a.data
    else:
        with torch.no_grad():
            c.set_(a.detach())
    before = [p.clone() for p in (a, b)]
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"'third' shares memory with parameter 'first'.*load_state_dict"):
            step()
    assert same_bits(a, before[0])
    assert same_bits(b, before[1])
    assert optimizer.state[a]["step"] == 3
    optimizer.load_state_dict(optimizer.state_dict())
    step()
    assert optimizer.state[c]["step"] == 4
    assert torch.allclose(a, before[0] - 0.02 * torch.ones(()), atol=2e-3)  # twice a step
    assert torch.allclose(b, before[1] - 0.01 * torch.ones(()), atol=1e-3)


def test_a_parameter_that_moves_to_other_memory_is_stepped_on() -> None:
    """The negative control: no two share it."""
    params = [nn.Parameter(torch.ones(1000)) for _ in range(3)]
    optimizer = FusedRAdam(params, lr=0.01)
    for t in range(6):
        for p in params:
            p.data = p.data.clone()
            p.grad = torch.ones(1000)
        optimizer.step()
        assert optimizer.state[params[0]]["step"] == t + 1
    assert same_bits(params[0], params[2])


def test_flatten_refuses_them_by_name() -> None:
    base = torch.ones(8)
    with pytest.raises(ValueError, match=r"flatten=True: parameter 'b' and parameter 'a' share memory"):
        FusedRAdam({"a": nn.Parameter(base), "b": nn.Parameter(base)}.items(), flatten=True)


def test_parameters_apart_share_one_bucket() -> None:
    """Neighbours in one buffer, and columns of one matrix, are no case of it."""
    base = torch.ones(6, 8)
    for views in ([base[0], base[1], base[3:]], list(base.t()), [base[:, :3], base[:, 3:7], base[:, 7]]):
        params = [nn.Parameter(view) for view in views]
        optimizer = FusedRAdam(params)
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        manager = optimizer._bucket_manager
        assert manager is not None
        assert len(manager.buckets) == 1


def shares(a: Tensor, b: Tensor) -> bool:
    """Whether two views of one base have an element in common, by counting."""
    places = torch.arange(100)
    first, second = (places.as_strided(t.shape, t.stride(), t.storage_offset()).reshape(-1).tolist() for t in (a, b))
    return not set(first).isdisjoint(second)


def test_layers_against_counting() -> None:
    generator = torch.Generator().manual_seed(0)

    def pick(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    base = torch.zeros(100)
    met = apart = 0
    for _ in range(4000):
        pair = []
        for _ in range(2):
            pitch = 1 + pick(12)
            shape, stride = (1 + pick(5), 1 + pick(4)), (pitch, 1 + pick(3))
            pair.append(base.as_strided(shape, stride, pick(30)))
        found = bool(overlaps.layers(pair))
        assert found or not shares(*pair)  # never missed; at times suspected where there is none
        met += found
        apart += not found
    assert met > 500
    assert apart > 500


def test_layers_of_many() -> None:
    base = torch.zeros(100)
    views = [base[:10], base[20:30], base[5:25], base[24:26], base, base[0:0]]
    assert overlaps.layers(views) == {2: 1, 3: 2, 4: 3}
    assert overlaps.layers([torch.zeros(3, device="meta"), torch.zeros(3, device="meta")]) == {}
    meta = torch.zeros(3, device="meta")
    assert overlaps.layers([meta, torch.zeros(3), meta.view(3)]) == {2: 1}
