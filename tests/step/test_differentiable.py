"""``differentiable=True``: gradients through the step, against torch.optim.RAdam's and against finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from radam_fused import FusedRAdam

STEPS = 8

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "decay": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "maximize": {"maximize": True},
}


def trained(optimizer: type[torch.optim.Optimizer], start: Tensor, lr: Any = 0.1, **options: Any) -> Tensor:
    """A parameter after `STEPS` steps, as a function of where it began and of ``lr``."""
    p = start.clone()
    opt = optimizer([p], lr=lr, differentiable=True, **options)
    weights = torch.arange(1.0, 1.0 + p.numel(), dtype=torch.float64)
    for _ in range(STEPS):
        (p.grad,) = torch.autograd.grad((p * p.conj() * weights).real.sum(), p, create_graph=True)
        opt.step()
    return p


def start(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(5, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=list(CONFIGURATIONS))
def test_values_and_gradients_are_torchs(options: dict[str, Any]) -> None:
    results = []
    for optimizer in (FusedRAdam, torch.optim.RAdam):
        begin = start()
        p = trained(optimizer, begin, **options)
        results.append((p.detach(), *torch.autograd.grad(p.sum(), begin)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert results[0][1].abs().max() > 0.1


def test_gradient_of_the_learning_rate_by_finite_differences() -> None:
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(trained(FusedRAdam, start(), lr, weight_decay=0.1).sum(), lr)
    ahead, behind = (trained(FusedRAdam, start(), 0.1 + d, weight_decay=0.1).sum().item() for d in (1e-6, -1e-6))
    assert slope.item() == pytest.approx((ahead - behind) / 2e-6, rel=1e-6)


def test_equals_the_reference_backend_where_autograd_is_not_asked() -> None:
    """The same lines of the contract, so the same values but for the last bit of the square root."""
    results = []
    for differentiable in (True, False):
        p = start().detach()
        opt = FusedRAdam([p], lr=0.1, weight_decay=0.1, differentiable=differentiable, backend="reference")
        for t in range(STEPS):
            p.grad = torch.full_like(p, 0.3 + t)
            opt.step()
        results.append((p, opt.state[p]["exp_avg"], opt.state[p]["exp_avg_sq"], opt.state[p]["step"]))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-15)


def test_complex() -> None:
    begin = start(torch.complex128)
    (grad,) = torch.autograd.grad(trained(FusedRAdam, begin).abs().sum(), begin)
    (theirs,) = torch.autograd.grad(trained(torch.optim.RAdam, begin).abs().sum(), begin)
    torch.testing.assert_close(grad, theirs, rtol=1e-12, atol=1e-14)


def test_state_dict_goes_both_ways() -> None:
    p = start().detach()
    opt = FusedRAdam([p], differentiable=True)
    p.grad = torch.ones_like(p)
    opt.step()
    other = FusedRAdam([p], differentiable=True)
    other.load_state_dict(opt.state_dict())
    assert torch.equal(other.state[p]["exp_avg"], opt.state[p]["exp_avg"])
    with pytest.raises(ValueError, match="differentiable"):
        FusedRAdam([p]).load_state_dict(opt.state_dict())


@pytest.mark.parametrize(
    "options",
    [{"capturable": True}, {"flatten": True}, {"max_grad_norm": 1.0}, {"backend": "cpu"}],
    ids=lambda options: next(iter(options)),
)
def test_what_it_does_not_go_with(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} = .* differentiable"):
        FusedRAdam([torch.zeros(3)], differentiable=True, **options)


def test_a_group_must_agree() -> None:
    opt = FusedRAdam([torch.zeros(3)])
    with pytest.raises(ValueError, match="differentiable"):
        opt.add_param_group({"params": [torch.zeros(2)], "differentiable": True})
    assert len(opt.param_groups) == 1
