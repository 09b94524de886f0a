"""Scalars computed on the device are float64 mathematics, and right where torch's float32 steps are not."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
import torch
import torch.optim.radam as torch_radam
from torch import Tensor

from radam_fused.numerics.scalars import RECTIFIED, StepScalars, compute_scalars
from radam_fused.options import GROUP_DEFAULTS
from tests.support.device_scalars import BETA2, STEPS, device_scalars, group


def exact_alpha(t: int, beta1: float, beta2: float) -> tuple[float, bool]:
    """alpha / lr and whether the step is rectified, from the very float64 betas: rational but for one square root."""
    b1, b2 = Fraction(beta1), Fraction(beta2)
    c1, c2 = 1 - b1**t, 1 - b2**t
    limit = 2 / (1 - b2) - 1
    rho = limit - 2 * t * b2**t / c2
    if rho <= 5:
        return float(1 / c1), False
    square = (rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho) * c2 / c1**2
    with localcontext() as context:
        context.prec = 40
        return float((Decimal(square.numerator) / Decimal(square.denominator)).sqrt()), True


@pytest.mark.parametrize("beta2", BETA2)
def test_alpha_is_float64_mathematics(beta2: float, backend: str, device: torch.device) -> None:
    for t, rows in zip(STEPS, device_scalars([group(beta2, lr=1.0)], STEPS, backend, device), strict=True):
        row = StepScalars(*rows[0].tolist())
        alpha, rectified = exact_alpha(t, 0.9, beta2)
        assert (row.update_rule == RECTIFIED) == rectified
        assert row.step_size == pytest.approx(alpha, rel=2e-13, abs=0)


# torch.optim.RAdam(capturable=True) computes rho_t in float32, from a float32 step: about t, and the difference of
# rho_inf and 2 t beta2^t / (1 - beta2^t), two numbers of size 2 / (1 - beta2). From beta2 = 0.9995 on, what that
# leaves crosses the branch before its time, and beyond it makes steps wrong by tens of percent and more.


def torchs_capturable_update(t: int, beta2: float, exp_avg_sq: Tensor, eps: float = 1e-8) -> Tensor:
    """What the capturable branch of torch/optim/radam.py (2.13) multiplies ``lr * m / (1 - beta1^t)`` with."""
    step_t = torch.tensor(float(t))  # as torch keeps it: float32
    bias_correction2 = 1 - beta2**step_t
    rho_inf = 2 / (1 - beta2) - 1
    rho_t = rho_inf - 2 * step_t * (beta2**step_t) / bias_correction2
    rect = ((rho_t - 4) * (rho_t - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho_t)) ** 0.5
    return torch.where(rho_t > 5.0, rect * ((bias_correction2**0.5) / (exp_avg_sq.sqrt() + eps)), 1.0)


def torchs_step(t: int, beta2: float) -> float:
    """The size of torch's capturable step number t, in units of lr, where every gradient was 1."""
    return torchs_capturable_update(t, beta2, torch.tensor(1 - beta2**t)).item()


def our_step(t: int, beta2: float) -> float:
    """The same of ours; m / (1 - beta1^t) is 1, and v is 1 - beta2^t."""
    row = compute_scalars({**GROUP_DEFAULTS, "betas": (0.9, beta2), "lr": 1.0}, t)
    unscaled = row.step_size * (1 - 0.9**t)
    return unscaled / (math.sqrt(1 - beta2**t) + 1e-8) if row.update_rule == RECTIFIED else unscaled


def exact_step(t: int, beta2: float) -> float:
    alpha, rectified = exact_alpha(t, 0.9, beta2)
    unscaled = alpha * (1 - 0.9**t)
    return unscaled / (math.sqrt(1 - beta2**t) + 1e-8) if rectified else unscaled


def test_the_formula_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU torch refuses its capturable branch unless it believes to be compiled."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for beta2, t in itertools.product(BETA2, range(1, 10)):
        p, m, v = torch.zeros(1), torch.ones(1), torch.full((1,), 0.25)
        torch_radam._single_tensor_radam(
            [p],
            [torch.ones(1)],
            [m],
            [v],
            [torch.tensor(t - 1.0)],
            beta1=0.0,
            beta2=beta2,
            lr=1.0,
            weight_decay=0.0,
            eps=1e-8,
            decoupled_weight_decay=False,
            differentiable=False,
            maximize=False,
            capturable=True,
            has_complex=False,
        )
        assert p.item() == pytest.approx(-torchs_capturable_update(t, beta2, v).item(), rel=1e-6)


@pytest.mark.parametrize("beta2", BETA2)
def test_our_step_is_right(beta2: float) -> None:
    for t in STEPS:
        assert our_step(t, beta2) == pytest.approx(exact_step(t, beta2), rel=1e-9)


TORCHS_ERRORS: dict[tuple[float, int], float] = {
    (0.9, 6): 0.0,
    (0.999, 6): -0.006,
    (0.9995, 5): -0.987,  # rho_t of 4.999 comes out above 5: a rectified step where the plain one is due
    (0.9995, 6): 0.051,
    (0.9999, 2): -0.991,
    (0.9999, 6): 0.577,
    (0.9999, 15): 0.143,
    (0.99999, 1): -0.964,
    (0.99999, 6): 13.4,
    (0.99999, 15): 4.6,
    (0.999999, 1): -0.885,
    (0.999999, 6): 140.0,
    (0.999999, 15): 52.0,
}
"""How much longer torch's capturable step is than it should be, as a part of it."""


@pytest.mark.parametrize(("beta2", "t"), TORCHS_ERRORS, ids=lambda value: f"{value}")
def test_torchs_capturable_step_is_wrong_where_ours_is_right(beta2: float, t: int) -> None:
    exact = exact_step(t, beta2)
    assert torchs_step(t, beta2) / exact - 1 == pytest.approx(TORCHS_ERRORS[beta2, t], rel=0.05, abs=5e-4)
    assert our_step(t, beta2) / exact - 1 == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("beta2", "last_right"), [(0.999, 5), (0.9995, 4), (0.9999, 1), (0.99999, 0), (0.999999, 0)])
def test_the_first_step_that_torchs_capturable_branch_rectifies(beta2: float, last_right: int) -> None:
    """It should be the sixth for all of these."""
    assert [exact_alpha(t, 0.9, beta2)[1] for t in (5, 6)] == [False, True]
    plain = [torchs_step(t, beta2) == 1.0 for t in range(1, 7)]
    assert plain.index(False) == last_right
