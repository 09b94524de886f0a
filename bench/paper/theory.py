"""The paper's theory in numbers: ρ_t and r_t, figures 8 and 9, the divergence at t = 1, the approximation by an SMA.

ψ = sqrt((1 - β2^t) / ((1 - β2) Σ β2^(t-i) g_i²)) is Adam's adaptive learning rate. The paper takes the weighted sum
(EMA) for a plain one (SMA) over ρ_t gradients, whose ψ² is scaled-inverse-χ² with ρ_t degrees of freedom. `ema_moments`
does without: it integrates the EMA itself, so that a simulation can be compared with an exact value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.paper.sizes import Sizes
from bench.paper.units import Unit
from radam_fused.rectification import exact_variance, rectification, rho, rho_inf, variance

PART = "theory"
BETA2 = 0.999
MEANS = (0.0, 0.001, 0.01, 0.1, 1.0, 10.0)
LANDMARKS = (5, 10, 100, 1000, 6000)
LEVY_MEDIAN = 1 / 0.6744897501960817**2  # of 1 / g², g standard normal


def units(sizes: Sizes) -> list[Unit]:
    steps, paths = sizes.horizon, sizes.paths
    a_step = 1.2e-8 * paths + 1e-5
    return [
        Unit(PART, "figure8", {"kind": "figure8", "first": 5, "last": 500}, 0.1),
        Unit(PART, "lengths", {"kind": "lengths", "beta2s": [0.9, 0.99, 0.999, 0.9999], "points": 240}, 0.2),
        Unit(
            PART,
            "figure9",
            {"kind": "figure9", "beta2": BETA2, "means": list(MEANS), "paths": paths, "steps": steps, "seed": 9},
            6 * a_step * steps + 1,
        ),
        Unit(
            PART,
            "sma",
            {"kind": "sma", "beta2": BETA2, "paths": 4 * paths, "steps": steps, "seed": 19},
            4 * a_step * steps + 1,
        ),
        Unit(
            PART,
            "divergence",
            {"kind": "divergence", "largest": sizes.samples, "repeats": 401, "seed": 1},
            16e-6 * sizes.samples,
        ),
    ]


def run(settings: dict[str, Any]) -> dict[str, Any]:
    asked = dict(settings)
    return KINDS[asked.pop("kind")](**asked)


def figure8(first: int, last: int) -> dict[str, Any]:
    """Var[ψ] in units of τ² for ν = first..last: Theorem 1, and the first-order approximation of equation 6."""
    nu = list(range(first, last + 1))
    return {
        "nu": nu,
        "exact": [variance(v, "exact") for v in nu],
        "first_order": [variance(v, "first_order") for v in nu],
    }


def times(last: int, points: int, first: int = 1) -> list[int]:
    """Whole numbers from first to last, evenly on a logarithmic axis, with the landmarks among them."""
    grid = {round(t) for t in np.geomspace(first, last, points)}
    return sorted(grid | {t for t in LANDMARKS if first <= t <= last} | {last})


def matched(t: int, beta2: float) -> float:
    """Degrees of freedom of the χ² with the EMA's mean and variance: (Σw)² / Σw², where ρ_t matches centres of mass."""
    power = beta2**t
    return rho_inf(beta2) * (1 - power) / (1 + power)


def lengths(beta2s: Sequence[float], points: int) -> dict[str, Any]:
    found = {}
    for beta2 in beta2s:
        at = times(100_000, points)
        found[f"{beta2:g}"] = {
            "t": at,
            "rho": [rho(t, beta2) for t in at],
            "matched": [matched(t, beta2) for t in at],
            "first_order": [rectification(t, beta2, "first_order", 4.0) for t in at],
            "exact": [rectification(t, beta2, "exact", 4.0) for t in at],
            "linear_warmup": [min(1.0, t * (1 - beta2) / 2) for t in at],
        }
    return found


def ema_moments(t: int, beta2: float, mean: float = 0.0, powers: Sequence[float] = (0.5, 1.0)) -> list[float]:
    """E[Q^-s] for s in powers, Q = Σ w_i g_i² the bias-corrected EMA after t gradients g ~ N(mean, 1).

    E[Q^-s] = 1/Γ(s) ∫ x^(s-1) E[exp(-xQ)] dx, and the Laplace transform of a sum of squared normals is a product. With
    x = exp(u) the integrand falls off exponentially on both sides, where the trapezoidal rule converges exponentially.
    """
    if not max(powers) < t / 2:
        raise ValueError(f"E[Q^-{max(powers):g}] is infinite at t = {t}")
    w = beta2 ** np.arange(t - 1, -1, -1, dtype=np.float64)
    w /= w.sum()
    width = 0.05
    u = np.arange(-90.0, 90.0, width)
    log_laplace = np.empty_like(u)
    for i, x in enumerate(np.exp(u)):
        wx = w * x
        log_laplace[i] = -0.5 * np.log1p(2 * wx).sum()
        if mean:
            log_laplace[i] -= mean**2 * (wx / (1 + 2 * wx)).sum()
    return [float(width * np.exp(s * u + log_laplace - math.lgamma(s)).sum()) for s in powers]


def ema_variance(t: int, beta2: float, mean: float = 0.0, paths: int | None = None) -> tuple[float, float]:
    """Var[ψ] of the EMA, and the standard error of the sample variance over so many paths."""
    m1, m2, m3, m4 = ema_moments(t, beta2, mean, (0.5, 1.0, 1.5, 2.0))
    var = m2 - m1 * m1
    fourth = m4 - 4 * m3 * m1 + 6 * m2 * m1**2 - 3 * m1**4
    error = math.sqrt(max(0.0, fourth - var * var) / paths) if paths else 0.0
    return var, error


def simulate(paths: int, at: Sequence[int], means: Sequence[float], beta2: float, seed: int) -> dict[str, np.ndarray]:
    """Var[ψ], E[v̂] and Var[v̂] over the paths, an array (time, mean) each; all means see the same noise."""
    generator = np.random.default_rng(seed)
    v = np.zeros((len(means), paths))
    shift = np.asarray(means)[:, None]
    wanted, rows = set(at), []
    for t in range(1, max(at) + 1):
        g = generator.standard_normal(paths) + shift
        v += (1 - beta2) * (g * g - v)
        if t in wanted:
            corrected = v / -math.expm1(t * math.log(beta2))
            psi = corrected**-0.5
            rows.append([psi.var(axis=1, ddof=1), corrected.mean(axis=1), corrected.var(axis=1, ddof=1)])
    stacked = np.array(rows)
    return {"variance": stacked[:, 0], "v_mean": stacked[:, 1], "v_variance": stacked[:, 2]}


def figure9(beta2: float, means: Sequence[float], paths: int, steps: int, seed: int) -> dict[str, Any]:
    """The paper's simulation: Var[ψ] over the paths, from which Var[r_t ψ] = r_t² Var[ψ] follows for either r_t."""
    at = times(steps, 120, first=5)
    found = simulate(paths, at, means, beta2, seed)
    checks = []
    for t in (t for t in LANDMARKS if t <= steps):
        for k, mean in enumerate(means):
            expected, error = ema_variance(t, beta2, mean, paths)
            measured = float(found["variance"][at.index(t), k])
            checks.append({"t": t, "mean": mean, "measured": measured, "expected": expected, "error": error})
    return {
        "t": at,
        "variance": found["variance"].T.tolist(),
        "theorem": [exact_variance(rho(t, beta2)) for t in at],
        "r_first_order": [rectification(t, beta2, "first_order", 4.0) for t in at],
        "r_exact": [rectification(t, beta2, "exact", 4.0) for t in at],
        "limit": exact_variance(rho_inf(beta2)),
        "checks": checks,
    }


def length_of(wanted: float) -> float:
    """The ρ at which Theorem 1 gives this variance."""
    low, high = math.log(2.0 + 1e-9), math.log(1e12)
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if exact_variance(math.exp(middle)) > wanted else (low, middle)
    return math.exp(low)


def sma(beta2: float, paths: int, steps: int, seed: int) -> dict[str, Any]:
    """Degrees of freedom of v̂: ρ_t, matched in the variance, measured 2 E² / Var, and those that Var[ψ] asks for."""
    at = times(steps, 40, first=5)
    found = simulate(paths, at, [0.0], beta2, seed)
    asked = [ema_variance(t, beta2)[0] for t in at]
    return {
        "t": at,
        "rho": [rho(t, beta2) for t in at],
        "matched": [matched(t, beta2) for t in at],
        "measured": (2 * found["v_mean"][:, 0] ** 2 / found["v_variance"][:, 0]).tolist(),
        "from_psi": [length_of(value) for value in asked],
        "from_psi_measured": [length_of(float(value)) for value in found["variance"][:, 0]],
        "rectified_variance": [
            (rectification(t, beta2, "exact", 4.0) or math.nan) ** 2 * value / exact_variance(rho_inf(beta2))
            for t, value in zip(at, asked, strict=True)
        ],
        "dip": _dip(beta2),
    }


def _dip(beta2: float) -> dict[str, float]:
    """Where r_t of ρ_t falls furthest below r_t of the matched degrees of freedom, and by how much."""
    limit = exact_variance(rho_inf(beta2))

    def ratio(t: int) -> float:
        return math.sqrt(exact_variance(matched(t, beta2)) / exact_variance(rho(t, beta2)))

    deepest = min(range(5, 6001), key=ratio)
    return {
        "t": deepest,
        "ratio": ratio(deepest),
        "r_t": math.sqrt(limit / exact_variance(rho(deepest, beta2))),
        "r_matched": math.sqrt(limit / exact_variance(matched(deepest, beta2))),
        "ratio_1000": ratio(1000),
        "rho_1000": rho(1000, beta2),
        "matched_1000": matched(1000, beta2),
    }


def divergence(largest: int, repeats: int, seed: int) -> dict[str, Any]:
    """Sample mean and variance at t = 1 of ψ² = 1/g² and of ψ = 1/|g| over n samples: medians of so many repeats."""
    generator = np.random.default_rng(seed)
    sizes = [10**k for k in range(1, round(math.log10(largest)) + 1)]
    rows = np.empty((repeats, len(sizes), 4))
    for repeat in range(repeats):
        psi = 1 / np.abs(generator.standard_normal(largest))
        square = psi * psi
        for i, n in enumerate(sizes):
            rows[repeat, i] = square[:n].mean(), square[:n].var(ddof=1), psi[:n].mean(), psi[:n].var(ddof=1)
    medians = np.median(rows, axis=0)
    slopes = np.polyfit(np.log(sizes[1:]), np.log(medians[1:]), 1)[0]
    names = ("square_mean", "square_variance", "mean", "variance")
    return {
        "n": sizes,
        "repeats": repeats,
        **{name: medians[:, i].tolist() for i, name in enumerate(names)},
        "slopes": dict(zip(names, slopes.tolist(), strict=True)),
        "levy_mean": [n * LEVY_MEDIAN for n in sizes],
    }


KINDS = {"figure8": figure8, "lengths": lengths, "figure9": figure9, "sma": sma, "divergence": divergence}
