"""Scalars compared with the formulas of the paper and of Adam, in plain float64; and the host's buffer of them."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from radam_fused.numerics import scalars as rows
from radam_fused.numerics.scalars import (
    NO_PARAM_UPDATE,
    RECTIFIED,
    UNRECTIFIED,
    ScalarBuffer,
    compute_scalars,
    group_scalars,
)
from radam_fused.options import GROUP_DEFAULTS
from radam_fused.rectification import KINDS, exact_variance, rectification
from tests.support.helpers import same_bits


def row(t: int, **changed: object):
    return compute_scalars({**GROUP_DEFAULTS, **changed}, t)


@pytest.mark.parametrize("t", [1, 5, 6, 7, 50, 1000])
def test_radam(t: int) -> None:
    r = row(t, lr=0.02)
    c1, c2 = 1 - 0.9**t, 1 - 0.999**t
    assert r.update_rule == (RECTIFIED if t >= 6 else UNRECTIFIED)
    expected = 0.02 * rectification(t, 0.999) * math.sqrt(c2) / c1 if t >= 6 else 0.02 / c1
    assert r.step_size == pytest.approx(expected, rel=1e-9)
    assert r.eps == 1e-8


def test_adam_moves_eps_before_the_bias_correction() -> None:
    r = row(3, rectification="none")
    assert r.update_rule == RECTIFIED
    assert r.step_size == pytest.approx(1e-3 * math.sqrt(1 - 0.999**3) / (1 - 0.9**3), rel=1e-9)
    assert r.eps == pytest.approx(1e-8 * math.sqrt(1 - 0.999**3), rel=1e-9)


def test_hold_until_rectified() -> None:
    r = row(5, degenerated_to_sgd=False, weight_decay=0.1, decoupled_weight_decay=True)
    assert (r.update_rule, r.step_size) == (NO_PARAM_UPDATE, 0.0)
    assert row(6, degenerated_to_sgd=False).update_rule == RECTIFIED


def test_decay_is_coupled_or_decoupled() -> None:
    coupled = row(9, weight_decay=0.1, lr=0.5)
    assert (coupled.l2_decay, coupled.decay_factor) == (0.1, 0.0)
    decoupled = row(9, weight_decay=0.1, lr=0.5, decoupled_weight_decay=True)
    assert (decoupled.l2_decay, decoupled.decay_factor) == (0.0, 0.05)


def test_maximize_changes_the_sign_of_the_gradient() -> None:
    assert (row(9).grad_scale_factor, row(9, maximize=True).grad_scale_factor) == (1.0, -1.0)


@pytest.mark.parametrize("threshold", [4.0, 5.0])
def test_threshold(threshold: float) -> None:
    assert row(5, rho_threshold=threshold).update_rule == (RECTIFIED if threshold == 4.0 else UNRECTIFIED)


def written(group: dict[str, Any], taken: int) -> Tensor:
    return ScalarBuffer(1).filled([group], [(0, 1)], torch.tensor([-1.0, float(taken)], dtype=torch.float64)).clone()


GROUPS = {
    "defaults": {},
    "exact": {"rectification": "exact", "rho_threshold": 4.5},
    "adam": {"rectification": "none", "maximize": True},
    "hold": {"degenerated_to_sgd": False, "seed": 7},
    "coupled": {"weight_decay": 0.03},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True, "lr": 0.3},
    "betas-0": {"betas": (0.0, 0.0)},
    "betas-near-1": {"betas": (0.4999, 1 - 1e-7)},
    "integers": {"lr": 1, "eps": 0, "betas": (0, 0.5), "weight_decay": 1},
}


@pytest.mark.parametrize("changed", GROUPS.values(), ids=GROUPS.keys())
def test_rows_written_in_c(changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's buffer has the scalars of `compute_scalars`, bit for bit; those of another step differ."""
    group = {**GROUP_DEFAULTS, **changed}
    made = []
    monkeypatch.setattr(rows, "compute_scalars", lambda *given: made.append(given) or compute_scalars(*given))
    for taken in (0, 1, 2, 3, 4, 5, 6, 7, 99, 100_000):
        expected = torch.tensor([compute_scalars(group, taken + 1)], dtype=torch.float64)
        assert same_bits(written(group, taken), expected)
        assert not same_bits(written(group, taken + 1), expected)
    assert not made  # it was C that wrote them


@pytest.mark.parametrize("kind", ["first_order", "exact", "none"])
def test_every_step_has_the_bits_of_c(kind: str) -> None:
    """Where a formula of Python and C++ differs in the last place, some of these steps show it."""
    differ = []
    for n in range(40):
        group = {**GROUP_DEFAULTS, "betas": (1 - 0.93 ** (n + 1), 1 - 0.7 ** (n + 1)), "rectification": kind}
        for taken in {int(1.6**k) + n for k in range(35)}:
            expected = torch.tensor([compute_scalars(group, taken + 1)], dtype=torch.float64)
            if not same_bits(written(group, taken), expected):
                differ.append((group["betas"], taken))
    assert not differ


@pytest.mark.parametrize("lr", [torch.tensor(0.25), Fraction(1, 4)], ids=["tensor", "fraction"])
def test_rows_left_to_python(lr: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    group = {**GROUP_DEFAULTS, "lr": lr}
    made = []
    monkeypatch.setattr(rows, "compute_scalars", lambda *given: made.append(given) or compute_scalars(*given))
    assert same_bits(written(group, 9), torch.tensor([compute_scalars(group, 10)], dtype=torch.float64))
    assert len(made) == 1


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"betas": (0.9, 1.0)}, r"param_groups\[0\]: betas\[1\] = 1\.0: must be in \[0, 1\)"),
        ({"rectification": "second_order"}, r"param_groups\[0\]: rectification = 'second_order': must be one of"),
        ({"rho_threshold": 3.0}, r"param_groups\[0\]: rho_threshold = 3\.0: must be at least 4"),
        ({"lr": math.inf}, r"param_groups\[0\]: lr = inf: must be finite"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_group_edited_to_what_no_row_has(changed: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        written({**GROUP_DEFAULTS, **changed}, 9)


def test_scalars_of_a_group_for_the_device() -> None:
    """As numbers that a step without a device uses, for each option that changes them."""
    plain = group_scalars(GROUP_DEFAULTS, 0.5)
    assert (plain.lr, plain.eps, plain.rho_threshold, plain.seed) == (0.5, 1e-8, 5.0, 0.0)
    assert (plain.one_minus_beta1, plain.beta2, plain.one_minus_beta2) == (1 - 0.9, 0.999, 1 - 0.999)
    assert (plain.decay_rate1, plain.decay_rate2) == pytest.approx((-math.log(0.9), -math.log(0.999)), rel=1e-14)
    assert (plain.rho_inf, plain.limit_variance) == (pytest.approx(1999.0), 1.0)
    assert (plain.l2_decay, plain.decoupled_decay, plain.sign, plain.unrectified_rule) == (0.0, 0.0, 1.0, UNRECTIFIED)
    coupled = {**GROUP_DEFAULTS, "weight_decay": 0.1, "maximize": True, "degenerated_to_sgd": False, "seed": 7}
    other = group_scalars(coupled, 0.5)
    assert (other.l2_decay, other.decoupled_decay, other.sign, other.seed) == (0.1, 0.0, -1.0, 7.0)
    assert other.unrectified_rule == NO_PARAM_UPDATE
    decoupled = group_scalars({**coupled, "decoupled_weight_decay": True}, 0.5)
    assert (decoupled.l2_decay, decoupled.decoupled_decay) == (0.0, 0.1)


@pytest.mark.parametrize(("beta2", "threshold", "exists"), [(0.999, 5.0, True), (0.6, 4.0, False), (0.7, 6.0, False)])
def test_the_limit_of_the_exact_variance(beta2: float, threshold: float, exists: bool) -> None:
    """It is computed where a step can be rectified: where rho_inf is above the threshold."""
    group = {**GROUP_DEFAULTS, "rectification": "exact", "betas": (0.9, beta2), "rho_threshold": threshold}
    made = group_scalars(group, 0.5)
    assert (made.rho_inf > threshold) == exists
    assert made.limit_variance == (exact_variance(made.rho_inf) if exists else 1.0)
    assert [group_scalars({**group, "rectification": kind}, 0.5).kind for kind in KINDS] == [0.0, 1.0, 2.0]
    assert group_scalars({**group, "rectification": "first_order"}, 0.5).limit_variance == 1.0
