"""``zero_grad`` under ``flatten``: before the first step, after it, and of gradients that user code has replaced."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from radam_fused import FusedRAdam


def flat(stepped: bool) -> tuple[FusedRAdam, list[nn.Parameter]]:
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(1))]
    optimizer = FusedRAdam(params, flatten=True)
    for p in params[:2]:
        p.grad = torch.full_like(p, 5.0)
    if stepped:
        optimizer.step()
    return optimizer, params


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("stepped", [False, True])
def test_gradients_are_zeroed_in_their_buffer(stepped: bool, set_to_none: bool) -> None:
    optimizer, params = flat(stepped)
    places = [p.grad.data_ptr() for p in params[:2]]
    optimizer.zero_grad(set_to_none=set_to_none)
    assert not any(p.grad.any() for p in params[:2])
    if stepped:
        assert [p.grad.data_ptr() for p in params[:2]] == places
    assert params[2].grad is None or not params[2].grad.any()


@pytest.mark.parametrize("value", [7.0, float("nan")])
def test_a_gradient_that_was_replaced_is_zero_and_back_in_its_buffer(value: float) -> None:
    optimizer, (first, second, _) = flat(stepped=True)
    before = first.grad.data_ptr()
    first.grad = torch.full((3,), value)
    optimizer.zero_grad()
    assert first.grad.tolist() == [0.0, 0.0, 0.0]
    assert first.grad.data_ptr() == before
    assert not second.grad.any()


def test_a_gradient_that_was_dropped_stays_none() -> None:
    optimizer, (first, second, _) = flat(stepped=True)
    first.grad = None
    optimizer.zero_grad()
    assert first.grad is None
    assert not second.grad.any()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_parameter_that_waits_for_its_bucket_is_treated_as_torch_does(set_to_none: bool) -> None:
    """One that requires no gradient has none, until user code gives it one."""
    p, frozen = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = FusedRAdam([p, frozen], flatten=True)
    frozen.grad = torch.ones(2)
    optimizer.zero_grad(set_to_none=set_to_none)
    assert (frozen.grad is None) == set_to_none
    if not set_to_none:
        assert frozen.grad.tolist() == [0.0, 0.0]
    frozen.grad = None
    optimizer.zero_grad(set_to_none=set_to_none)
    assert frozen.grad is None
