"""The report's section on theory."""

from __future__ import annotations

from typing import Any

from bench.paper.text import Picture, plain, prose, table
from bench.paper.theory import BETA2
from radam_fused.rectification import exact_variance, rectification, rho, variance


def lines(records: dict[str, Any], picture: Picture) -> list[str]:
    found = {name: record["result"] for name, record in records.items()}
    text: list[str] = []
    if "lengths" in found:
        text += _lengths(picture)
    if "figure8" in found:
        text += _figure8(found["figure8"], picture)
    if "figure9" in found:
        text += _figure9(found["figure9"], picture)
    if "divergence" in found and "sma" in found:
        text += _divergence(found["divergence"], picture) + _sma(found["sma"])
    return text


def _lengths(picture: Picture) -> list[str]:
    rows = []
    for t in (5, 6, 10, 20, 100, 1000, 10000):
        first, exact = (rectification(t, BETA2, kind, 4.0) or 0.0 for kind in ("first_order", "exact"))
        linear = min(1.0, t * (1 - BETA2) / 2)
        rows.append(
            [str(t), plain(rho(t, BETA2), 5), plain(first, 4), plain(exact, 4), plain(exact / first), plain(linear)]
        )
    headings = [
        "t, β2 = 0.999",
        "ρ_t",
        "r_t, first order",
        "r_t, exact",
        "exact / first order",
        "untuned linear warm-up",
    ]
    return [
        "### ρ_t and r_t",
        "",
        *picture("lengths", "rho_t and r_t over t"),
        *table(headings, rows),
        *prose(
            "For β2 >= 0.9 ρ_t > 4 holds from t = 5 on and ρ_t > 5 from t = 6 on: the two thresholds differ in one",
            "step. r_t starts as a square root, the untuned linear warm-up of Ma and Yarats (arXiv 1910.04209) as a",
            "line, which ends after 2 / (1-β2) = 2,000 steps, where r_t is",
            f"{plain(rectification(2000, BETA2))}.",
        ),
    ]


def _figure8(found: dict[str, Any], picture: Picture) -> list[str]:
    rows = []
    for nu in (5, 6, 8, 10, 20, 50, 100, 200, 500):
        exact, first = (found[key][found["nu"].index(nu)] for key in ("exact", "first_order"))
        error = f"{100 * (first / exact - 1):.3g} %"
        rows.append([str(nu), plain(exact, 5), plain(first, 5), plain(first - exact), error])
    ratio = variance(5.0, "first_order") / variance(5.0, "exact")
    return [
        "### Figure 8: the first-order variance against Theorem 1",
        "",
        *picture("figure8", "Exact and first-order variance"),
        *table(["ν", "exact", "first order", "absolute error", "relative error"], rows),
        *prose(
            f"Where training begins the first order is far off: at ρ = 5 it is {plain(ratio)} times too large, and",
            f"its r_t {plain(ratio**0.5)} times too small. From ν = 50 on it is within 5 %. The error is always to",
            'the same side. `rectification="exact"` does without the approximation.',
        ),
        *prose(
            "What exists where: the first order is Var[X] / 4 E[X] for X = ψ², scaled-inverse-χ², and needs ν > 4,",
            "where Var[X] is finite. ψ's own variance, Theorem 1, is finite for ρ > 2 already:",
            f"{plain(exact_variance(3.0))} τ² at ρ = 3, {plain(exact_variance(4.0))} τ² at 4, where the first order is",
            "infinite. The paper's threshold of 4 is that of its approximation.",
        ),
    ]


def constant(found: dict[str, Any]) -> str:
    """How far Var[r ψ] is from its limit over the simulation with mean 0."""
    texts = []
    for key, label in (("r_first_order", "first order"), ("r_exact", "exact")):
        ratios = [
            (r * r * value / found["limit"], t)
            for t, r, value in zip(found["t"], found[key], found["variance"][0], strict=True)
            if r is not None
        ]
        low, high = min(ratios), max(ratios)
        texts.append(f"{label} {plain(low[0])} (t = {low[1]}) to {plain(high[0])} (t = {high[1]}) of its limit")
    falls = found["variance"][0][0] / found["variance"][0][-1]
    return f"{'; '.join(texts)}; Var[ψ] itself falls by a factor of {plain(falls)}"


def _ranges(found: dict[str, Any]) -> str:
    means = sorted({check["mean"] for check in found["checks"]})
    texts = []
    for mean, variances in zip(means, found["variance"], strict=True):
        if mean in (0, 1, 10):
            rectified = [r * r * value for r, value in zip(found["r_exact"], variances, strict=True)]
            texts.append(f"{plain(max(rectified) / min(rectified))} at a mean of {mean:g}")
    return ", ".join(texts)


def _figure9(found: dict[str, Any], picture: Picture) -> list[str]:
    checks = found["checks"]

    def deviation(check: dict[str, float]) -> float:
        return (check["measured"] - check["expected"]) / check["error"]

    def theorem(check: dict[str, float]) -> list[str]:
        """For the paper's approximation, which assumes gradients with mean 0."""
        if check["mean"]:
            return ["", ""]
        value = exact_variance(rho(int(check["t"]), BETA2))
        return [plain(value, 4), f"{deviation({**check, 'expected': value}):+.1f}"]

    rows = [
        [
            f"{check['mean']:g}",
            str(check["t"]),
            plain(check["measured"], 4),
            plain(check["expected"], 4),
            f"{deviation(check):+.1f}",
            *theorem(check),
        ]
        for check in checks
        if check["mean"] in (0, 0.1, 1, 10)
    ]
    headings = ["mean of g", "t", "Var[ψ]", "expected", "off by, SE", "Theorem 1 at ρ_t", "off by, SE"]
    return [
        "### Figure 9: simulated",
        "",
        *picture("figure9", "Var of psi and of r psi, simulated"),
        *prose(
            "Expected is no approximation: the moments of ψ for a weighted sum of squared normals, integrated",
            f"(`theory.ema_moments`). Of {len(checks)} comparisons the largest deviation is",
            f"{max(abs(deviation(check)) for check in checks):.1f} standard errors (SE; all means see the same noise).",
            "Theorem 1 at ρ_t takes the EMA for an SMA as well, which shows around t = 1,000: see the dip below.",
        ),
        *table(headings, rows),
        *prose(
            f"Var[r_t ψ] for mean 0: {constant(found)}. The paper's claim, a consistent variance, holds but for the",
            "first steps of the first order and for the dip below. The theory supposes mean 0, and yet r_t evens out",
            f"the others: the largest over the smallest variance under the exact r_t is {_ranges(found)}.",
        ),
    ]


def _divergence(found: dict[str, Any], picture: Picture) -> list[str]:
    slopes = found["slopes"]
    keys = ("square_mean", "levy_mean", "square_variance", "mean", "variance")
    rows = [[f"10^{len(str(n)) - 1}", *(plain(found[key][i]) for key in keys)] for i, n in enumerate(found["n"])]
    return [
        "### t = 1: the moments that do not exist",
        "",
        *picture("approximation", "Divergence at t = 1, and degrees of freedom"),
        *prose(
            "1/g² of a normal g is Lévy distributed: the mean of n of them is distributed as n times a single one, so",
            f"that E[1/g²] and Var[1/g²] are infinite, as the paper says. Medians of {found['repeats']} samples of n:",
        ),
        *table(["n", "mean of 1/g²", "theory", "variance of 1/g²", "mean of ψ = 1/|g|", "variance of ψ"], rows),
        *prose(
            f"Growth with n: the mean as n^{slopes['square_mean']:.2f} (theory: 1), the variance as",
            f"n^{slopes['square_variance']:.2f} (3), ψ's variance as n^{slopes['variance']:.2f} (1), its mean as",
            "log n.",
        ),
    ]


def _sma(found: dict[str, Any]) -> list[str]:
    dip = found["dip"]
    short = [100 * (1 - dip[key]) for key in ("ratio_1000", "ratio")]
    rows = []
    for i, t in enumerate(found["t"]):
        if t in (5, 10, 100, 1000, 6000):
            lengths = (plain(found[key][i], 5) for key in ("rho", "matched", "measured", "from_psi"))
            rows.append([str(t), *lengths, plain(found["rectified_variance"][i])])
    headings = [
        "t",
        "ρ_t",
        "(Σw)² / Σw²",
        "2 E² / Var, measured",
        "what Var[ψ] asks for",
        "Var[r_t ψ] / limit, exact r_t",
    ]
    return [
        "### The EMA taken for an SMA",
        "",
        *prose(
            "The paper's SMA has the EMA's centre of mass, hence ρ_t. The χ² with the EMA's mean and variance has",
            "(Σw)² / Σw² degrees of freedom; this is what the simulation measures, and what the EMA's own Var[ψ] asks",
            "for:",
        ),
        *table(headings, rows),
        *prose(
            f"At t = 1,000 ρ_t is {plain(dip['rho_1000'], 4)} against {plain(dip['matched_1000'], 4)}. So r_t has a",
            f"dip of its own: it is {short[0]:.1f} % too small there, and at most {short[1]:.1f} %, at",
            f"t = {dip['t']:.0f} ({plain(dip['r_t'], 4)} against {plain(dip['r_matched'], 4)}). At the start and in",
            "the limit the two lengths agree. The paper does not mention it.",
        ),
    ]
