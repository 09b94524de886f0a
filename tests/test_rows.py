"""A row against the formulas of the paper and of Adam, in plain float64."""

from __future__ import annotations

import math

import pytest

from radam_fused.options import GROUP_DEFAULTS
from radam_fused.rectification import rectification
from radam_fused.rows import ADAPTIVE, HOLD, MOMENTUM, step_row


def row(t: int, **changed: object):
    return step_row({**GROUP_DEFAULTS, **changed}, t)


@pytest.mark.parametrize("t", [1, 5, 6, 7, 50, 1000])
def test_radam(t: int) -> None:
    r = row(t, lr=0.02)
    c1, c2 = 1 - 0.9**t, 1 - 0.999**t
    assert r.direction == (ADAPTIVE if t >= 6 else MOMENTUM)
    expected = 0.02 * rectification(t, 0.999) * math.sqrt(c2) / c1 if t >= 6 else 0.02 / c1
    assert r.alpha == pytest.approx(expected, rel=1e-9)
    assert r.eps == 1e-8


def test_adam_moves_eps_before_the_bias_correction() -> None:
    r = row(3, rectification="none")
    assert r.direction == ADAPTIVE
    assert r.alpha == pytest.approx(1e-3 * math.sqrt(1 - 0.999**3) / (1 - 0.9**3), rel=1e-9)
    assert r.eps == pytest.approx(1e-8 * math.sqrt(1 - 0.999**3), rel=1e-9)


def test_hold_until_rectified() -> None:
    r = row(5, degenerated_to_sgd=False, weight_decay=0.1, decoupled_weight_decay=True)
    assert (r.direction, r.alpha) == (HOLD, 0.0)
    assert row(6, degenerated_to_sgd=False).direction == ADAPTIVE


def test_decay_is_coupled_or_decoupled() -> None:
    coupled = row(9, weight_decay=0.1, lr=0.5)
    assert (coupled.coupled_decay, coupled.shrink) == (0.1, 1.0)
    decoupled = row(9, weight_decay=0.1, lr=0.5, decoupled_weight_decay=True)
    assert (decoupled.coupled_decay, decoupled.shrink) == (0.0, 0.95)


def test_maximize_changes_the_sign_of_the_gradient() -> None:
    assert (row(9).grad_factor, row(9, maximize=True).grad_factor) == (1.0, -1.0)


@pytest.mark.parametrize("threshold", [4.0, 5.0])
def test_threshold(threshold: float) -> None:
    assert row(5, rho_threshold=threshold).direction == (ADAPTIVE if threshold == 4.0 else MOMENTUM)
