"""Parameters that can get no gradient: frozen ones of any dtype and layout, and lazy ones that are yet to be made."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam, step_in_backward
from tests.support.helpers import same_bits

FROZEN: dict[str, Callable[[], Tensor]] = {
    **{
        str(dtype): lambda dtype=dtype: torch.ones(16, 8, device="cpu").to(dtype)
        for dtype in (torch.uint8, torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2)
    },
    "uint4": lambda: torch.empty(4, dtype=torch.uint4),
    "float4": lambda: torch.empty(4, dtype=torch.float4_e2m1fn_x2),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "mkldnn": lambda: torch.eye(4).to_mkldnn(),
    "expanded": lambda: torch.ones(1).expand(4),
    "conjugate": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "meta": lambda: torch.ones(3, device="meta"),
}

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "flatten": {"flatten": True},
    "int8": {"state_dtype": torch.int8},
    "clipped": {"max_grad_norm": 0.1},
    "capturable": {"capturable": True},
    "offload": {"offload": True},
    "differentiable": {"differentiable": True},
}


def train(params: list[Tensor], trained: Tensor, options: dict[str, Any]) -> Tensor:
    """Three steps, a state_dict that is loaded, a copy of everything, and another step."""
    optimizer = FusedRAdam(params[:1], lr=0.1, **options)
    if params[1:]:
        optimizer.add_param_group({"params": params[1:]})
    for t in range(4):
        trained.grad = torch.sin(torch.arange(trained.numel()) * (t + 1.0))
        optimizer.step()
        if t == 1:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.zero_grad()
    assert list(optimizer.state) == [trained]
    return trained.detach()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("frozen", FROZEN)
def test_frozen_parameters_of_any_kind_are_taken_along(frozen: str, options: str) -> None:
    other = FROZEN[frozen]()
    if frozen == "conjugate":
        other.requires_grad_(False)
    expected = train([alone := torch.linspace(-1, 1, 5000)], alone, OPTIONS[options])
    for place in (0, 1):
        p = torch.linspace(-1, 1, 5000)
        params = [p]
        params.insert(place, other)
        found = train(params, p, OPTIONS[options])
        assert (
            same_bits(found, expected) or options == "int8"
        )  # whose random bits depend on the place among all parameters
    assert not same_bits(expected, torch.linspace(-1, 1, 5000))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_that_requires_a_gradient_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=rf"param_groups\[0\]\['params'\]\[1\] is {dtype}: must be one of"):
        FusedRAdam([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3).to(dtype))])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("case", ["float8", "int64", "expanded"])
def test_thawed_it_is_refused_by_name_before_anything_is_written(case: str, options: str) -> None:
    p = torch.linspace(-1, 1, 5000)
    other = {"float8": torch.ones(3).to(torch.float8_e4m3fn), "int64": torch.arange(3), "expanded": torch.ones(1)}[case]
    if case == "expanded":
        other = other.expand(4)
    optimizer = FusedRAdam([p, other], **OPTIONS[options])
    for _ in range(2):
        p.grad = torch.ones(5000)
        optimizer.step()
    before, count = p.clone(), float(optimizer.state[p]["step"])
    p.grad = torch.ones(5000)
    other.grad = torch.ones_like(other)
    with pytest.raises((TypeError, ValueError), match=r"param_groups\[0\]\['params'\]\[1\] is"):
        optimizer.step()
    assert same_bits(p, before)
    assert float(optimizer.state[p]["step"]) == count
    other.grad = None
    p.grad = torch.ones(5000)
    optimizer.step()
    assert not same_bits(p, before)


def test_float64_is_accepted_frozen_with_low_precision_moments() -> None:
    p, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, dtype=torch.float64), requires_grad=False)
    optimizer = FusedRAdam([p, other], state_dtype=torch.bfloat16)
    p.grad = torch.ones(3)
    optimizer.step()
    other.requires_grad_(True)
    other.grad = torch.ones(3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"state_dtype = torch.bfloat16: .*param_groups\[0\]\['params'\]\[1\]"):
        optimizer.step()


def test_stepping_in_backward_leaves_frozen_ones_alone() -> None:
    p = nn.Parameter(torch.ones(3))
    frozen = [nn.Parameter(FROZEN[name](), requires_grad=False) for name in ("torch.uint8", "torch.float8_e4m3fn")]
    optimizer = FusedRAdam([*frozen, p], lr=0.1)
    with step_in_backward(optimizer):
        p.sum().backward()
        assert p.grad is None
        optimizer.step()
    assert p[0] < 1


# Lazy parameters.


@pytest.mark.parametrize("options", OPTIONS)
def test_lazy_modules_train_as_with_torch(options: str) -> None:
    def run(make: Callable[..., torch.optim.Optimizer], lazy: bool) -> list[Tensor]:
        torch.manual_seed(0)
        first = nn.LazyLinear(4) if lazy else nn.Linear(5, 4)
        model = nn.Sequential(first, nn.Linear(4, 2))
        if lazy:
            state = run_plain
            optimizer = make(model.parameters())
            model(torch.ones(1, 5))
            model.load_state_dict(state)
        else:
            optimizer = make(model.parameters())
        for t in range(7):
            optimizer.zero_grad()
            model(torch.linspace(-1, t, 15).view(3, 5)).square().sum().backward()
            optimizer.step()
            if t == 3:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        return [p.detach() for p in model.parameters()]

    torch.manual_seed(0)
    run_plain = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2)).state_dict()
    if options == "differentiable":
        return  # parameters there are no leaves
    ours = run(lambda params: FusedRAdam(params, lr=0.1, **OPTIONS[options]), lazy=True)
    without = run(lambda params: FusedRAdam(params, lr=0.1, **OPTIONS[options]), lazy=False)
    assert all(same_bits(a, b) for a, b in zip(ours, without, strict=True))


def test_a_lazy_module_that_never_runs_is_skipped_and_copied() -> None:
    lazy, p = nn.LazyLinear(4), nn.Parameter(torch.ones(3))
    optimizer = FusedRAdam([*lazy.parameters(), p])
    for _ in range(2):
        p.grad = torch.ones(3)
        optimizer.step()
    assert list(optimizer.state) == [p]
    assert len(copy.deepcopy(optimizer).state) == 1
    optimizer.load_state_dict(optimizer.state_dict())


def test_state_for_a_lazy_parameter_is_refused_by_name() -> None:
    made = nn.Linear(5, 4)
    made.weight.grad, made.bias.grad = torch.ones(4, 5), torch.ones(4)
    saved = FusedRAdam(made.parameters())
    saved.step()
    optimizer = FusedRAdam(nn.LazyLinear(4).parameters())
    with pytest.raises(ValueError, match=r"has state for param_groups\[0\]\['params'\]\[0\], .* uninit"):
        optimizer.load_state_dict(saved.state_dict())


def test_lazy_parameters_step_in_backward_from_their_second_pass_on() -> None:
    lazy = nn.LazyLinear(4)
    optimizer = FusedRAdam(lazy.parameters(), lr=0.1)
    step_in_backward(optimizer)
    for t in range(3):
        lazy(torch.ones(2, 3)).sum().backward()
        assert (lazy.weight.grad is None) == (t > 0)
        optimizer.step()
        assert optimizer.state[lazy.weight]["step"] == t + 1
        assert lazy.weight.grad is None


# Groups and lists of parameters that are tuples.


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("what", ["param_groups", "params"])
def test_tuples_in_the_place_of_lists_cost_no_new_layout(what: str, options: str) -> None:
    p, q = torch.linspace(-1, 1, 5000), torch.ones(3)
    optimizer = FusedRAdam([p, q], lr=0.1, **OPTIONS[options])
    names = []
    for t in range(4):
        if t == 1 and what == "param_groups":
            optimizer.param_groups = tuple(optimizer.param_groups)  # type: ignore[assignment]
        elif t == 1:
            optimizer.param_groups[0]["params"] = tuple(optimizer.param_groups[0]["params"])
        p.grad, q.grad = torch.ones(5000), torch.ones(3)
        optimizer.step()
        manager = optimizer._bucket_manager
        names.append(None if manager is None else manager.name)
    assert optimizer.state[p]["step"] == 4
    assert len(set(names[1:])) == 1
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())


def test_a_parameter_in_a_tuple_that_is_replaced_is_noticed() -> None:
    p, q = torch.ones(3), torch.ones(3)
    optimizer = FusedRAdam([p], lr=0.1)
    optimizer.param_groups[0]["params"] = (p,)
    for _ in range(2):
        p.grad = torch.ones(3)
        optimizer.step()
    p.grad, q.grad = None, torch.ones(3)
    optimizer.param_groups[0]["params"] = (q,)
    optimizer.step()
    assert q[0] < 1
    assert optimizer.state[q]["step"] == 1
