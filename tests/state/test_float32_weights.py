"""`FusedRAdam.float32_weight`: what averages and exports read where parameters are rounded copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from radam_fused import FusedRAdam, step_in_backward
from tests.support.helpers import same_bits

SIZE, STEPS = 4096 + 5, 8


def gradient(step: int) -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(step)).bfloat16()


def trained(dtype: torch.dtype, **options: Any) -> tuple[nn.Parameter, FusedRAdam]:
    p = nn.Parameter(torch.linspace(-1, 1, SIZE).bfloat16().to(dtype))
    opt = FusedRAdam([p], lr=1e-3, weight_decay=0.1, decoupled_weight_decay=True, **options)
    for t in range(STEPS):
        p.grad = gradient(t).to(dtype)
        opt.step()
    return p, opt


@pytest.mark.parametrize("kept", ["fp32", "split"])
def test_it_is_the_weight_of_the_run_in_float32(kept: Any) -> None:
    p, opt = trained(torch.bfloat16, master_weights=kept)
    whole, _ = trained(torch.float32)
    found = opt.float32_weight(p)
    assert same_bits(found, whole.detach())
    assert not same_bits(found, p.detach().float())  # the negative control: the parameter is rounded
    assert not found.requires_grad


def test_kahan_is_nearer_than_the_parameter() -> None:
    p, opt = trained(torch.bfloat16, master_weights="kahan")
    whole, _ = trained(torch.float32)
    off, rounded = ((x - whole).abs().max() for x in (opt.float32_weight(p), p.float()))
    assert off < rounded / 20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_without_master_weights_it_is_a_copy(dtype: torch.dtype) -> None:
    p, opt = trained(dtype)
    found = opt.float32_weight(p)
    assert same_bits(found, p.detach().to(torch.promote_types(dtype, torch.float32)))
    found.zero_()
    assert bool(p.any())
    other = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    assert same_bits(opt.float32_weight(other), torch.ones(3))


def test_a_parameter_that_user_code_has_written() -> None:
    """As the next step takes it: element by element, from the parameter where it is another than the rounded master."""
    p, opt = trained(torch.bfloat16, master_weights="fp32")
    before = opt.float32_weight(p)
    with torch.no_grad():
        p[:7] = 3.0
    found = opt.float32_weight(p)
    assert same_bits(found[:7], torch.full((7,), 3.0))
    assert same_bits(found[7:], before[7:])


def test_reading_changes_nothing() -> None:
    runs = []
    for reads in (False, True):
        p = nn.Parameter(torch.linspace(-1, 1, SIZE).bfloat16())
        opt = FusedRAdam([p], lr=1e-3, master_weights="split")
        for t in range(STEPS):
            if reads:
                opt.float32_weight(p).fill_(5.0)
            p.grad = gradient(t)
            opt.step()
        runs.append((p.detach(), opt.float32_weight(p)))
    assert all(same_bits(a, b) for a, b in zip(*runs, strict=True))


def test_in_backward_and_complex() -> None:
    found = []
    for backward in (False, True):
        p = nn.Parameter(torch.ones(SIZE).bfloat16())
        opt = FusedRAdam([p], lr=1e-3, master_weights="split")
        if backward:
            step_in_backward(opt)
        for t in range(STEPS):
            (p * gradient(t)).sum().backward()
            opt.step()
            opt.zero_grad()
        found.append(opt.float32_weight(p))
    assert same_bits(*found)
    z = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    assert same_bits(FusedRAdam([z]).float32_weight(z), torch.ones(3, dtype=torch.complex64))


def test_an_average_that_bfloat16_would_not_move() -> None:
    """An EMA as docs/trainers.md writes it: 0.999 of the average and 0.001 of the weight, in float32."""
    torch.manual_seed(0)
    model = nn.Linear(64, 64).bfloat16()
    opt = FusedRAdam(model.parameters(), lr=1e-4, master_weights="split")
    average = [opt.float32_weight(p) for p in model.parameters()]
    begun = [a.clone() for a in average]
    rounded = AveragedModel(model, avg_fn=lambda a, p, _: a.lerp(p, 0.001))
    rounded.update_parameters(model)
    before = [p.detach().clone() for p in rounded.module.parameters()]
    for t in range(20):
        model(torch.randn(8, 64, generator=torch.Generator().manual_seed(t)).bfloat16()).square().mean().backward()
        opt.step()
        opt.zero_grad()
        for a, p in zip(average, model.parameters(), strict=True):
            a.lerp_(opt.float32_weight(p), 0.001)
        rounded.update_parameters(model)
    assert all(bool((a != b).float().mean() > 0.9) for a, b in zip(average, begun, strict=True))
    still = [bool((a == b).float().mean() > 0.9) for a, b in zip(before, rounded.module.parameters(), strict=True)]
    assert all(still)  # the negative control: the same average of the rounded parameters
