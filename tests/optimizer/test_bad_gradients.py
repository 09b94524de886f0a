"""Bad gradients: an error that names the parameter, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam
from tests.support.helpers import same_bits
from tests.support.single_parameters import parameter, step_with_ones


class Elsewhere(nn.Parameter):
    """A parameter whose gradient is what a test puts there, unchecked by torch."""

    found: Tensor | None = None
    grad = property(lambda self: self.found, lambda self, value: setattr(self, "found", value))


def sparse(p: nn.Parameter) -> Tensor:
    return torch.ones_like(p).to_sparse()


GRADIENTS: dict[str, tuple[Callable[[nn.Parameter], Tensor], type[Exception], str]] = {
    "sparse": (sparse, RuntimeError, "does not support sparse gradients; its layout is torch.sparse_coo"),
    "on_meta": (
        lambda p: torch.ones_like(p, device="meta"),
        ValueError,
        "is on meta: must be on cpu",
    ),
    "shorter": (lambda p: torch.ones(2, dtype=p.dtype), ValueError, r"has shape \(2,\): must have .*\(3,\)"),
    "longer": (lambda p: torch.ones(300, dtype=p.dtype), ValueError, r"has shape \(300,\): must have .*\(3,\)"),
    "broadcastable": (lambda p: torch.ones(1, dtype=p.dtype), ValueError, r"has shape \(1,\): must have .*\(3,\)"),
    "same_numel": (lambda p: torch.ones(3, 1, dtype=p.dtype), ValueError, r"has shape \(3, 1\): must have .*\(3,\)"),
    "integer": (lambda p: torch.ones(3, dtype=torch.int32), TypeError, "is torch.int32: must be one of"),
    "complex": (lambda p: torch.ones(3, dtype=torch.complex64), TypeError, "is torch.complex64: must be one of"),
    "other_precision": (
        lambda p: torch.ones(3, dtype=torch.float32 if p.dtype == torch.float64 else torch.float64),
        TypeError,
        r"is torch.float\d\d: must be one of .* for a torch.\w+ parameter",
    ),
}

BUCKETS = {"one": (torch.float32,), "last_of_three": (torch.float32, torch.bfloat16, torch.float64)}


@pytest.mark.sampled
@pytest.mark.parametrize("steps", [0, 2], ids=["first_step", "third_step"])
@pytest.mark.parametrize("dtypes", BUCKETS.values(), ids=BUCKETS)
@pytest.mark.parametrize(("make", "error", "message"), GRADIENTS.values(), ids=GRADIENTS)
def test_bad_gradient_changes_nothing(
    make: Callable, error: type[Exception], message: str, dtypes: tuple, steps: int, backend: str
) -> None:
    """Nor does it where only the last of several buckets has one; and training goes on with a good one."""
    if torch.cuda.is_available():
        backend = {"triton": "reference"}.get(backend, backend)
    params = [Elsewhere(parameter(3, dtype=dtype).detach()) for dtype in dtypes for _ in range(2)]
    opt = FusedRAdam([{"params": params[:1]}, {"params": params[1:]}], backend=backend, weight_decay=0.1)
    for _ in range(steps):
        step_with_ones(opt)
    before = snapshot(opt, params)
    for p in params:
        p.grad = torch.ones_like(p)
    params[-1].grad = make(params[-1])
    place = rf"param_groups\[1\]\['params'\]\[{len(params) - 2}\]"
    with pytest.raises(error, match=f"gradient of {place}.*{message}"):
        opt.step()
    assert unchanged(before, snapshot(opt, params))
    step_with_ones(opt)
    assert not unchanged(before, snapshot(opt, params))


@pytest.mark.parametrize("name", ["sparse", "shorter", "longer", "broadcastable", "same_numel"])
@pytest.mark.parametrize("dtypes", BUCKETS.values(), ids=BUCKETS)
@pytest.mark.parametrize("steps", [0, 2], ids=["first_step", "third_step"])
def test_bad_gradient_under_flatten(name: str, dtypes: tuple, steps: int) -> None:
    make, error, message = GRADIENTS[name]
    params = [Elsewhere(parameter(3, dtype=dtype).detach()) for dtype in dtypes for _ in range(2)]
    opt = FusedRAdam(params, flatten=True, weight_decay=0.1)
    for _ in range(steps):
        step_with_ones(opt)
    before = snapshot(opt, params)
    for p in params:
        p.grad = torch.ones_like(p)
    params[-1].grad = make(params[-1])
    with pytest.raises(error, match=rf"\['params'\]\[{len(params) - 1}\].*{message}"):
        opt.step()
    assert unchanged(before, snapshot(opt, params))
    opt.zero_grad()
    step_with_ones(opt)
    assert not unchanged(before, snapshot(opt, params))


def snapshot(opt: FusedRAdam, params: list[Any]) -> list[Any]:
    """Parameters, moments and step counts."""
    states = [opt.state.get(p, {}) for p in params]
    return [
        [p.detach().clone() for p in params],
        [sorted(state) for state in states],
        [value.clone() for state in states for value in state.values()],
    ]


def unchanged(before: list[Any], after: list[Any]) -> bool:
    tensors = [list(zip(a, b, strict=True)) if len(a) == len(b) else [] for a, b in zip(before, after, strict=True)]
    return (
        before[1] == after[1]
        and all(same_bits(a, b) for a, b in tensors[0])
        and all(same_bits(a, b) for a, b in tensors[2])
    )


def test_bad_gradient_is_named_by_the_parameters_name() -> None:
    p = Elsewhere(torch.ones(3))
    opt = FusedRAdam([("head.bias", p)])
    p.grad = torch.ones(4)
    with pytest.raises(ValueError, match=r"gradient of parameter 'head.bias' has shape \(4,\)"):
        opt.step()


@pytest.mark.parametrize("flatten", [False, True], ids=["apart", "flatten"])
def test_sparse_embedding(flatten: bool) -> None:
    """As torch.optim.RAdam, with a RuntimeError that says so."""
    embedding = nn.Embedding(9, 3, sparse=True)
    opt = FusedRAdam(embedding.parameters(), flatten=flatten)
    before = embedding.weight.detach().clone()
    embedding.weight.grad = None
    embedding(torch.tensor([1, 4])).sum().backward()
    assert embedding.weight.grad.is_sparse
    with pytest.raises(RuntimeError, match="FusedRAdam does not support sparse gradients"):
        opt.step()
    assert same_bits(embedding.weight, before)
    assert not any(entry["step"] for entry in opt.state.values())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("elements", [2, 300], ids=["shorter", "longer"])
def test_parameter_whose_data_got_another_shape(elements: int, backend: str) -> None:
    """Its moments no longer fit it: an error rather than a step into a neighbour's."""
    params = [parameter(3), parameter(4)]
    opt = FusedRAdam(params, backend=backend)
    step_with_ones(opt)
    params[0].data = torch.zeros(elements)
    before = snapshot(opt, params)
    with pytest.raises((ValueError, RuntimeError), match=rf"params'\]\[0\].*\({elements},\).*\(3,\)"):
        step_with_ones(opt)
    assert unchanged(before, snapshot(opt, params))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_parameter_whose_data_got_another_dtype(backend: str) -> None:
    """As `model.double()` after the optimizer has stepped: its moments are float32."""
    params = [parameter(3), parameter(4)]
    opt = FusedRAdam(params, backend=backend)
    step_with_ones(opt)
    for p in params:
        p.grad = None
        p.data = p.data.double()
    before = snapshot(opt, params)
    with pytest.raises((ValueError, TypeError, RuntimeError), match=r"params'\]\[0\].*float64.*float32"):
        step_with_ones(opt)
    assert unchanged(before, snapshot(opt, params))
