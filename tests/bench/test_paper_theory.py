"""The paper's theory in numbers: figures 8 and 9 against fractions, 50-digit vectors and exact moments."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import pytest

from tests.support.paths import ROOT

pytest.importorskip("numpy")
pytest.importorskip("rich")

import numpy as np

from bench.paper import theory
from radam_fused import rectification

VECTORS = json.loads((ROOT / "tests" / "golden" / "rectification.json").read_text())
PI = "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798"
BETA2 = 0.999
TIMES = [5, 10, 100, 1000]
PATHS = 5000


def theorem1(nu: int) -> float:
    """ν/(ν-2) - ν/2 (Γ((ν-1)/2) / Γ(ν/2))² for whole ν: the squared ratio is rational, times π or over it."""

    def gamma(twice: int) -> Fraction:
        """Γ(twice / 2), without the √π of the halves."""
        value = Fraction(1)
        while twice > 2:
            twice -= 2
            value *= Fraction(twice, 2)
        return value

    root = gamma(nu - 1) / gamma(nu)
    pi = Fraction(PI)
    square = root * root * (pi if nu % 2 == 0 else 1 / pi)
    return float(Fraction(nu, nu - 2) - Fraction(nu, 2) * square)


def test_figure8_is_theorem_1_at_whole_degrees() -> None:
    found = theory.figure8(5, 500)
    for nu, exact, first in zip(found["nu"], found["exact"], found["first_order"], strict=True):
        assert exact == pytest.approx(theorem1(nu), rel=1e-12)
        assert first == pytest.approx(nu / (2 * (nu - 2) * (nu - 4)), rel=1e-12)
        # Negative controls: the other curve; a degree more.
        assert first > 1.004 * exact
        assert theorem1(nu + 1) < 0.999 * exact


def test_figure8_against_the_vectors() -> None:
    """The vectors give variances at the ρ_t of a step; the figure's function is the same at whole ν."""
    found = theory.figure8(5, 500)
    assert found["nu"] == list(range(5, 501))
    rectified = [v for v in VECTORS if "r_exact" in v]
    assert len(rectified) == 136
    for v in rectified:
        for kind in ("exact", "first_order"):
            assert rectification.variance(v["rho_t"], kind) == pytest.approx(v[f"var_{kind}"], rel=1e-12)
    # Between the vectors, each curve is between its neighbours' values, as both fall with ν.
    for kind in ("exact", "first_order"):
        curve = dict(zip(found["nu"], found[kind], strict=True))
        known = sorted((v["rho_t"], v[f"var_{kind}"]) for v in rectified if 5 <= v["rho_t"] <= 500)
        assert len(known) > 40
        for length, value in known:
            assert curve[math.ceil(length)] <= value <= curve[math.floor(length)]
        # Negative control: the other curve is elsewhere, where a degree is a small part of the length.
        wrong = "exact" if kind == "first_order" else "first_order"
        elsewhere = {v["rho_t"]: v[f"var_{wrong}"] for v in rectified}
        assert not all(curve[math.ceil(x)] <= elsewhere[x] <= curve[math.floor(x)] for x, _ in known)
    assert found["first_order"][0] / found["exact"][0] == pytest.approx(3.3, abs=0.02)
    assert found["first_order"][45] / found["exact"][45] - 1 == pytest.approx(0.049, abs=5e-4)


def test_lengths_against_the_vectors() -> None:
    found = theory.lengths([BETA2], 50)["0.999"]
    known = {v["t"]: v for v in VECTORS if v["beta2"] == BETA2}
    shared = [t for t in found["t"] if t in known]
    assert set(shared) >= {1, 5, 10, 100, 1000, 100_000}
    for t in shared:
        i = found["t"].index(t)
        assert found["rho"][i] == pytest.approx(known[t]["rho_t"], rel=1e-12)
        for kind in ("first_order", "exact"):
            expected = known[t].get(f"r_{kind}")
            assert found[kind][i] == (None if expected is None else pytest.approx(expected, rel=1e-12))
    # Negative control: another β2's numbers.
    other = theory.lengths([0.9999], 50)["0.9999"]
    assert other["rho"][other["t"].index(100)] != pytest.approx(known[100]["rho_t"], rel=1e-3)


def test_moments_of_an_sma_are_theorem_1() -> None:
    """With equal weights (β2 = 1 - 1e-12) the integral is the χ², whose moments are known."""
    for t in (5, 10, 100):
        found = theory.ema_variance(t, 1 - 1e-12)[0]
        assert found == pytest.approx(rectification.variance(t, "exact"), rel=1e-9)
        # Negative control: with unequal weights it is not.
        assert theory.ema_variance(t, 0.9)[0] != pytest.approx(rectification.variance(t, "exact"), rel=1e-3)
    with pytest.raises(ValueError, match="infinite"):
        theory.ema_variance(4, BETA2)  # its error needs the fourth moment
    assert theory.ema_moments(1, BETA2, 0.0, [0.25])[0] == pytest.approx(
        2**-0.25 * math.gamma(0.25) / math.gamma(0.5), rel=1e-9
    )


@pytest.fixture(scope="module")
def simulated() -> dict:
    return theory.simulate(PATHS, TIMES, theory.MEANS, BETA2, seed=5)


def deviations(simulated: dict, expected) -> list[float]:
    """In standard errors, the exact ones, at each time, for mean 0."""
    errors = [theory.ema_variance(t, BETA2, 0.0, PATHS)[1] for t in TIMES]
    pairs = zip(simulated["variance"][:, 0], (expected(t) for t in TIMES), errors, strict=True)
    return [(float(found) - value) / error for found, value, error in pairs]


def test_figure9_within_four_standard_errors_of_theory(simulated) -> None:
    for k, mean in enumerate(theory.MEANS):
        for i, t in enumerate(TIMES):
            expected, error = theory.ema_variance(t, BETA2, mean, PATHS)
            assert abs(simulated["variance"][i, k] - expected) < 4 * error, (mean, t)
    # Theorem 1 with the matched degrees of freedom is as good; with ρ_t it is 5 % off in r_t at t = 1,000 (the dip).
    matched = deviations(simulated, lambda t: rectification.exact_variance(theory.matched(t, BETA2)))
    assert max(map(abs, matched)) < 4
    at_rho = deviations(simulated, lambda t: rectification.exact_variance(rectification.rho(t, BETA2)))
    assert max(map(abs, at_rho[:3])) < 4
    assert at_rho[3] < -4


def test_the_rectified_variance_is_the_limits(simulated) -> None:
    """Figure 9's claim: constant under the exact r_t, not under the first order's at t = 5, nor unrectified."""
    limit = rectification.exact_variance(rectification.rho_inf(BETA2))

    def rectified(kind: str) -> list[float]:
        return deviations(simulated, lambda t: limit / (rectification.rectification(t, BETA2, kind, 4.0) or 1.0) ** 2)

    assert max(map(abs, rectified("exact")[:3])) < 4
    assert abs(rectified("first_order")[0]) > 4
    assert min(map(abs, rectified("none"))) > 4


@pytest.mark.parametrize(
    "wrong",
    [
        lambda t: rectification.rho(t, 0.99),
        lambda t: 1.3 * rectification.rho(t, BETA2),
        lambda t: 0.8 * rectification.rho(t, BETA2),
    ],
)
def test_a_wrong_rho_is_noticed(simulated, wrong) -> None:
    found = deviations(simulated, lambda t: rectification.exact_variance(max(2.5, wrong(t))))
    assert max(map(abs, found)) > 4


def test_the_simulation_is_the_plain_loop() -> None:
    generator = np.random.default_rng(3)
    g = np.stack([generator.standard_normal(7) for _ in range(12)])
    for k, mean in enumerate((0.0, 10.0)):
        weights = (1 - BETA2) * BETA2 ** np.arange(11, -1, -1)
        psi = np.sqrt((1 - BETA2**12) / (weights[:, None] * (g + mean) ** 2).sum(0))
        found = theory.simulate(7, [12], (0.0, 10.0), BETA2, seed=3)["variance"][0, k]
        assert found == pytest.approx(psi.var(ddof=1), rel=1e-9)
        # Negative control: without the bias correction.
        assert found != pytest.approx(psi.var(ddof=1) / (1 - BETA2**12), rel=0.1)


def test_the_dip_and_the_divergence() -> None:
    dip = theory._dip(BETA2)
    assert (dip["rho_1000"], dip["matched_1000"]) == pytest.approx((835.97, 924.17), rel=1e-4)
    assert dip["ratio_1000"] == pytest.approx(0.9509, abs=1e-4)
    assert 1000 < dip["t"] < 2000
    # Negative control: none to speak of at the start, where both lengths are t.
    assert theory.matched(5, BETA2) == pytest.approx(rectification.rho(5, BETA2), rel=1e-3)
    found = theory.divergence(10**4, 101, seed=2)
    assert found["slopes"]["square_mean"] == pytest.approx(1, abs=0.3)
    assert found["slopes"]["square_variance"] == pytest.approx(3, abs=0.6)
    assert found["square_mean"][-1] == pytest.approx(found["levy_mean"][-1], rel=0.6)
    assert theory.length_of(rectification.exact_variance(17.0)) == pytest.approx(17.0)
