"""The scalars of a RAdam step, in float64: rho_t, Var[psi] and r_t (Liu et al., arXiv 1908.03265).

Everything here is a function of the step ``t`` (counted from 1) and of ``beta2`` alone; no tensor is involved. The
textbook formulas lose up to eleven digits for beta2 near 1, where they subtract numbers of size 2 / (1 - beta2); the
ones below have only positive terms and hold 1e-12 relative for 0 <= beta2 <= 1 - 1e-7 and 1 <= t <= 1e9.

There is one exception. The first-order r_t is 0 at rho_t = 4, where a relative error of 2e-16 in rho_t becomes one of
at most 4e-15 / (rho_t - 4) in r_t. That exceeds 1e-12 for rho_t below 4.004. Only a threshold of 4 rectifies such
steps: with beta2 within 4e-4 above 0.6, or where the first rectified step has such a rho_t. The exact r_t has no such
exception.

What depends on ``t`` uses only sums, products, quotients and square roots, each rounded by itself, so that a device
computes the same bits: csrc/numerics/scalars.h, backends/triton/scalars_kernel.py and
backends/reference/scalars.py must match this file.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, get_args

__all__ = ["KINDS", "bias_correction", "exact_variance", "rectification", "rho", "rho_inf", "variance"]

Kind = Literal["first_order", "exact", "none"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Values of ``rectification=``: the paper's equation 6, its Theorem 1, and no rectification at all (Adam)."""

# Var[psi] / tau^2 = (1 / 2 rho) (1 + sum_k c_k rho^-k). Each c_k follows from the recurrence in exact_variance, with
# u = 1 / rho as the expansion variable; eleven of them leave 2e-15 at rho = 50.
SERIES_FROM = 50.0
SERIES = (
    15 / 4,
    83 / 8,
    1605 / 64,
    7163 / 128,
    60795 / 512,
    250819 / 1024,
    8183085 / 16384,
    33204863 / 32768,
    267051345 / 131072,
    1062888709 / 262144,
    17061862545 / 2097152,
)


def _between(name: str, value: float, low: float, high: float, allowed: str) -> None:
    """Raises unless ``low <= value < high``. A NaN fails every comparison."""
    try:
        within = low <= value < high
    except TypeError:
        raise TypeError(f"{name} = {value!r}: must be a number, {allowed}") from None
    if not within:
        raise ValueError(f"{name} = {value!r}: must be {allowed}")


def check_step(t: float, beta2: float) -> None:
    """Raises for a step count or a beta2 that is not allowed."""
    _between("t", t, 1.0, math.inf, "at least 1, the count of the first step, and finite")
    _check_beta2(beta2)


def _check_beta2(beta2: float) -> None:
    _between("beta2", beta2, 0.0, 1.0, "in [0, 1)")


def check_kind(kind: Any, threshold: float) -> None:
    """Raises for a kind of rectification or a threshold that is not allowed."""
    if kind not in KINDS:
        raise ValueError(f"kind = {kind!r}: must be one of {KINDS}")
    _between("threshold", threshold, 4.0, math.inf, "at least 4, where the variance becomes finite, and not infinite")


def decay_rate(beta: float) -> float:
    """``-log(beta)``, accurate on all of [0, 1): 1 - beta is exact for beta >= 1/2 (Sterbenz), log is best below."""
    if beta == 0.0:
        return math.inf
    return -math.log1p(beta - 1.0) if beta >= 0.5 else -math.log(beta)


def one_minus_exp(y: float) -> float:
    """``1 - exp(-y)`` for y >= 0, within a few units in the last place; 1 from y = 40 on.

    For z = y / 64 this is 2 T / (1 + T) with T = tanh(z / 2) as Lambert's continued fraction; then
    1 - exp(-2z) = e + e (1 - e) for e = 1 - exp(-z), six times. No step enlarges the relative error of the one before.
    """
    half = (y if y < 40.0 else 40.0) * 0.0078125
    square = half * half
    # Unrolled, as `_langevin` is: loops would take half of the time in which the host computes a step's scalars.
    tail = 1.0 + square / (3.0 + square / (5.0 + square / (7.0 + square / (9.0 + square / (11.0 + square / 13.0)))))
    tanh = half / tail
    e = 2.0 * tanh / (1.0 + tanh)
    e = e + e * (1.0 - e)
    e = e + e * (1.0 - e)
    e = e + e * (1.0 - e)
    e = e + e * (1.0 - e)
    e = e + e * (1.0 - e)
    return e + e * (1.0 - e)


@functools.lru_cache(maxsize=1024)  # the groups of a model mostly share these arguments
def bias_correction(t: float, beta: float) -> float:
    """``1 - beta**t`` without cancellation (Adam, Kingma & Ba, section 3)."""
    return one_minus_exp(t * decay_rate(beta))


def rho_inf(beta2: float) -> float:
    """Length of the approximated SMA in the limit, ``2 / (1 - beta2) - 1`` (section 4.1 of the paper).

    Raises:
        ValueError: ``beta2`` outside [0, 1).
    """
    _check_beta2(beta2)
    return (1.0 + beta2) / (1.0 - beta2)


def _langevin(y: float) -> float:
    """Langevin's ``L(y) = coth(y) - 1/y`` for 0 <= y < 1, as Lambert's continued fraction: no term is negative."""
    s = y * y
    tail = 15.0 + s / (17.0 + s / (19.0 + s / 21.0))
    return y / (3.0 + s / (5.0 + s / (7.0 + s / (9.0 + s / (11.0 + s / (13.0 + s / tail))))))


def rho(t: float, beta2: float) -> float:
    """Length of the approximated SMA at step ``t``: ``rho_inf - 2 t beta2^t / (1 - beta2^t)`` (equation 5).

    With x = -log(beta2) this is coth(x/2) - t coth(t x/2) + t. For t x/2 < 1 the poles 2/x of the two coth are
    cancelled analytically, which leaves Langevin functions. For larger t x/2 the subtrahend is small and the formula
    is accurate as it stands.

    Raises:
        ValueError: ``t`` below 1 or ``beta2`` outside [0, 1).
    """
    check_step(t, beta2)
    x = decay_rate(beta2)
    y = t * x
    if y < 2.0:
        return t + _langevin(0.5 * x) - t * _langevin(0.5 * y)
    c2 = one_minus_exp(y)
    return rho_inf(beta2) - 2.0 * t * ((1.0 - c2) / c2)


def _first_order_variance(rho: float) -> float:
    return rho / (2.0 * (rho - 2.0) * (rho - 4.0))


def exact_variance(rho: float) -> float:
    """Theorem 1, ``rho/(rho-2) - (rho/2) (Gamma((rho-1)/2) / Gamma(rho/2))^2``, without its cancellation.

    Gamma's recurrence turns the theorem into V(rho) = rho/(rho-1)^2 (1/(rho-2) + V(rho+2) rho^2/(rho+2)), all positive;
    the recurrence is run down from a rho of at least 50, where the asymptotic series is accurate.
    """
    steps = max(0, math.ceil((SERIES_FROM - rho) / 2.0))
    at = rho + 2.0 * steps
    tail = 0.0
    for coefficient in reversed(SERIES):
        tail = (tail + coefficient) / at
    value = (1.0 + tail) / (2.0 * at)
    for k in range(steps - 1, -1, -1):
        at = rho + 2.0 * k
        value = at / ((at - 1.0) * (at - 1.0)) * (1.0 / (at - 2.0) + value * (at / (at + 2.0)) * at)
    return value


def variance(rho: float, kind: Literal["first_order", "exact"] = "first_order") -> float:
    """Var[psi] of the adaptive learning rate at SMA length ``rho``, in units of tau^2.

    Args:
        rho: length of the SMA; above 4 for ``"first_order"``, above 2 for ``"exact"``, where the variance is finite.
        kind: ``"first_order"`` (the paper's equation 6) or ``"exact"`` (its Theorem 1).

    Raises:
        ValueError: an unknown ``kind`` or a ``rho`` at which that variance does not exist.
    """
    if kind not in KINDS[:2]:
        raise ValueError(f"kind = {kind!r}: must be 'first_order' or 'exact'")
    lowest = 4.0 if kind == "first_order" else 2.0
    if not rho > lowest:
        raise ValueError(f"rho = {rho!r}: the {kind} variance exists for rho > {lowest:g}")
    return _first_order_variance(rho) if kind == "first_order" else exact_variance(rho)


@functools.lru_cache(maxsize=1024)  # the groups of a model mostly share these arguments
def rectification(t: float, beta2: float, kind: Kind = "first_order", threshold: float = 5.0) -> float | None:
    """The rectification term ``r_t = sqrt(Var[psi](rho_inf) / Var[psi](rho_t))`` (algorithm 2), or None.

    Args:
        t: the step, from 1.
        beta2: decay of the second moment, in [0, 1).
        kind: ``"first_order"``, ``"exact"`` or ``"none"`` (then always 1: Adam).
        threshold: a step is rectified if ``rho_t > threshold``; at least 4, where the variance becomes finite.

    Returns:
        r_t, or None if the step is not rectified.

    Raises:
        ValueError: an argument out of its range.
    """
    check_step(t, beta2)
    check_kind(kind, threshold)
    if kind == "none":
        return 1.0
    rho_t = rho(t, beta2)
    if not rho_t > threshold:
        return None
    limit = rho_inf(beta2)
    if kind == "exact":
        return math.sqrt(exact_variance(limit) / exact_variance(rho_t))
    return math.sqrt(((rho_t - 4.0) / (limit - 4.0)) * ((rho_t - 2.0) / (limit - 2.0)) * (limit / rho_t))
