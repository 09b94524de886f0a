"""The scalars of a step against 50-digit vectors."""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal, localcontext

import pytest

from tests.support.paths import ROOT

pytest.importorskip("hypothesis", reason="requirements/dev.txt has it")

from hypothesis import given, settings
from hypothesis import strategies as st

from radam_fused import rectification as R

VECTORS = json.loads((ROOT / "tests" / "golden" / "rectification.json").read_text())
RECTIFIED = [v for v in VECTORS if "r_exact" in v]
TOLERANCE = 1e-12


def relative(value: float, expected: float) -> float:
    return abs(value - expected) / abs(expected)


def test_vectors_cover_the_range() -> None:
    assert len(VECTORS) == 168
    assert len(RECTIFIED) == 136
    assert max(v["t"] for v in VECTORS) == 10**9
    assert max(v["beta2"] for v in VECTORS) == 0.999999


@pytest.mark.parametrize("key", ["rho_inf", "rho_t", "one_minus_beta2_pow_t"])
def test_lengths(key: str) -> None:
    functions = {
        "rho_inf": lambda v: R.rho_inf(v["beta2"]),
        "rho_t": lambda v: R.rho(v["t"], v["beta2"]),
        "one_minus_beta2_pow_t": lambda v: R.bias_correction(v["t"], v["beta2"]),
    }
    assert max(relative(functions[key](v), v[key]) for v in VECTORS) < TOLERANCE


@pytest.mark.parametrize("kind", ["first_order", "exact"])
def test_rectification(kind: str) -> None:
    for v in RECTIFIED:
        assert relative(R.rectification(v["t"], v["beta2"], kind, threshold=4.0), v[f"r_{kind}"]) < TOLERANCE
        assert relative(R.variance(v["rho_t"], kind), v[f"var_{kind}"]) < TOLERANCE


def test_the_textbook_formula_would_fail() -> None:
    """The negative control: the textbook's formula in float64 misses the tolerance that ours holds."""
    worst = 0.0
    for v in VECTORS:
        power = v["beta2"] ** v["t"]
        plain = (2.0 / (1.0 - v["beta2"]) - 1.0) - 2.0 * v["t"] * power / (1.0 - power)
        worst = max(worst, relative(plain, v["rho_t"]))
    assert worst > 1e-6


def test_unrectified_where_the_vectors_say_so() -> None:
    for v in VECTORS:
        assert (R.rectification(v["t"], v["beta2"], threshold=4.0) is None) == (v["rho_t"] <= 4.0)
        assert (R.rectification(v["t"], v["beta2"]) is None) == (v["rho_t"] <= 5.0)


@pytest.mark.parametrize(("threshold", "first"), [(4.0, 5), (5.0, 6)])
@pytest.mark.parametrize("beta2", [0.9, 0.99, 0.999, 0.9995, 0.9999, 0.99999, 0.999999, 1 - 1e-7])
def test_first_rectified_step(beta2: float, threshold: float, first: int) -> None:
    assert R.rectification(first - 1, beta2, threshold=threshold) is None
    assert R.rectification(first, beta2, threshold=threshold) is not None


@pytest.mark.parametrize("beta2", [0.0, 0.1, 0.6, 2 / 3])
def test_never_rectified_for_small_beta2(beta2: float) -> None:
    assert all(R.rectification(t, beta2) is None for t in (1, 5, 6, 100, 10**9))


def test_none_is_adam() -> None:
    assert {R.rectification(t, 0.999, "none") for t in (1, 2, 6, 10**6)} == {1.0}


@pytest.mark.parametrize(("t", "ratio"), [(5, 1.82), (6, 1.47), (20, 1.07), (100, 1.01)], ids=lambda x: str(x))
def test_exact_exceeds_first_order(t: int, ratio: float) -> None:
    both = [R.rectification(t, 0.999, kind, threshold=4.0) for kind in ("exact", "first_order")]
    assert both[0] / both[1] == pytest.approx(ratio, abs=0.006)


def test_exact_variance_agrees_with_theorem_1() -> None:
    for rho in (2.1, 2.7, 3.0, 4.0, 4.1, 5.0, 7.3, 12.0, 33.0):
        root = math.exp(math.lgamma((rho - 1) / 2) - math.lgamma(rho / 2))
        theorem = rho / (rho - 2) - rho / 2 * root * root
        assert relative(R.variance(rho, "exact"), theorem) < 1e-11


def test_exact_variance_is_smooth_where_the_series_begins() -> None:
    below, above = (R.variance(50.0 + d, "exact") for d in (-1e-9, 1e-9))
    assert relative(below, above) < 1e-10


def by_fifty_digits(t: int, beta2: float) -> tuple[Decimal, Decimal]:
    """rho_t - 4, and r_t of the first order, as the paper has them."""
    with localcontext() as context:
        context.prec = 60
        b = Decimal(beta2)
        limit = 2 / (1 - b) - 1
        rho = limit - 2 * t * b**t / (1 - b**t)
        if rho <= 4:
            return rho - 4, Decimal(0)
        return rho - 4, ((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)).sqrt()


STEPS = st.one_of(st.integers(5, 60), st.integers(5, 10**9))
NEAR_SIX_TENTHS = st.floats(-12.0, -1.0).map(lambda exponent: 0.6 + 10.0**exponent)


@settings(max_examples=400, deadline=None)
@given(beta2=st.one_of(st.floats(0.6, 1.0 - 1e-7), NEAR_SIX_TENTHS), t=STEPS)
def test_first_order_to_the_edge(beta2: float, t: int) -> None:
    """Under the lowest threshold, where r_t is 0 at the edge: there the error that is stated, and 1e-12 elsewhere."""
    beyond, expected = by_fifty_digits(t, beta2)
    allowed = max(TOLERANCE, 4e-15 / float(beyond)) if beyond > 0 else math.inf
    r_t = R.rectification(t, beta2, threshold=4.0)
    if r_t is None or expected == 0:
        assert abs(beyond) < 4e-15 or (r_t is None) == (expected == 0)
        return
    assert abs(Decimal(r_t) / expected - 1) < allowed
    if beyond > 4e-3:
        assert allowed == TOLERANCE


def test_the_edge_is_where_it_is_said_to_be() -> None:
    """The negative control: 1e-12 does not hold there, so that a claim of it everywhere would be wrong."""
    beyond, expected = by_fifty_digits(76, 0.6 + 4.1e-11)
    found = R.rectification(76, 0.6 + 4.1e-11, threshold=4.0)
    assert 0 < beyond < 1e-8
    assert found is not None
    assert abs(Decimal(found) / expected - 1) > 1e-9


@settings(max_examples=300, deadline=None)
@given(beta2=st.floats(0.0, 1.0 - 1e-7), t=st.integers(1, 10**9))
def test_bounds(beta2: float, t: int) -> None:
    """rho_t starts at 1 and rises towards rho_inf; r_t is in (0, 1]; the bias correction in (0, 1]."""
    assert 0.0 < R.bias_correction(t, beta2) <= 1.0
    assert 1.0 - 1e-12 <= R.rho(t, beta2) <= R.rho_inf(beta2) * (1.0 + 1e-12)
    for kind in ("first_order", "exact"):
        r_t = R.rectification(t, beta2, kind)
        assert r_t is None or 0.0 < r_t <= 1.0 + 1e-12


@settings(max_examples=200, deadline=None)
@given(beta2=st.floats(0.5, 1.0 - 1e-7), t=st.integers(1, 10**6))
def test_rho_rises(beta2: float, t: int) -> None:
    assert R.rho(t + 1, beta2) >= R.rho(t, beta2) * (1.0 - 1e-15)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: R.rho(0, 0.9), "t = 0: must be at least 1, the count of the first step, and finite"),
        (lambda: R.rho(math.inf, 0.9), "t = inf: must be at least 1, the count of the first step, and finite"),
        (lambda: R.rho(3, 1.0), "beta2 = 1.0: must be in [0, 1)"),
        (lambda: R.rho_inf(-0.1), "beta2 = -0.1: must be in [0, 1)"),
        (lambda: R.rho_inf(math.nan), "beta2 = nan: must be in [0, 1)"),
        (lambda: R.variance(4.0), "rho = 4.0: the first_order variance exists for rho > 4"),
        (lambda: R.variance(2.0, "exact"), "rho = 2.0: the exact variance exists for rho > 2"),
        (lambda: R.variance(9.0, "none"), "kind = 'none': must be 'first_order' or 'exact'"),
        (
            lambda: R.rectification(6, 0.9, "second"),
            "kind = 'second': must be one of ('first_order', 'exact', 'none')",
        ),
        (
            lambda: R.rectification(6, 0.9, threshold=3.9),
            "threshold = 3.9: must be at least 4, where the variance becomes finite, and not infinite",
        ),
    ],
    ids=[
        "t",
        "t_inf",
        "beta2_one",
        "beta2_negative",
        "beta2_nan",
        "rho_4",
        "rho_2",
        "variance_kind",
        "kind",
        "threshold",
    ],
)
def test_bad_arguments(call, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()


def test_an_argument_that_is_no_number() -> None:
    with pytest.raises(TypeError, match=r"^beta2 = '0.9': must be a number, in \[0, 1\)$"):
        R.rho_inf("0.9")  # type: ignore[arg-type]


def test_langevin_of_small_arguments_to_the_last_place() -> None:
    """coth(y) - 1/y with 60 digits; the continued fraction is cut where the rest is below a unit in the last place."""
    with localcontext() as context:
        context.prec = 60
        for n in range(1, 100):
            y = Decimal(n / 100)
            square = (2 * y).exp()
            exact = (square + 1) / (square - 1) - 1 / y
            assert abs(Decimal(R._langevin(n / 100)) / exact - 1) < Decimal("2.5e-16")
