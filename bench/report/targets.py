"""What the project promises of a CPU, each line decided by the results: PASS, MISS, or UNMEASURED."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

PASS, MISS, UNMEASURED = "PASS", "MISS", "UNMEASURED"
FLAT, TENSORS = "fused-flat", "fused"

Found = dict[str, Any]


def _case(found: Found, name: str) -> dict[str, Any] | None:
    return next((case for case in found["cases"] if case["name"] == name), None)


def _line(text: str, value: float | None, holds: Callable[[float], bool], unit: str = "") -> str:
    if value is None:
        return f"{UNMEASURED} {text}"
    return f"{PASS if holds(value) else MISS} {text}: {value:.3g}{unit}"


def _median(case: dict[str, Any] | None, contestant: str, key: str, part: str | None = None) -> float | None:
    """A number of a row; None where there is no such row."""
    row = case["contestants"].get(contestant) if case else None
    value = row.get(key) if row else None
    if part is not None:
        value = value.get(part) if value else None
    return value["median"] if value else None


def _floors(found: Found) -> Iterator[str]:
    for name in ("16M", "gpt2"):
        for ours in (FLAT, TENSORS):
            share = _median(_case(found, name), ours, "share_of_floor")
            yield _line(
                f"{name}: {ours} at 90 % of the ceiling", share and 100 * share, lambda value: value >= 90.0, " %"
            )


def _nobody_faster(found: Found) -> Iterator[str]:
    """The faster of ours against every peer that moves the same bytes, in every case."""
    faster = []
    for case in found["cases"]:
        for row in case["contestants"].values():
            if row["role"] == "peer" and row["bytes_per_element"] == 28 and row["times_ours"]:
                times = max(ratio["median"] for ratio in row["times_ours"].values())
                if times < 1.0:
                    faster.append(f"{case['title']}, {row['label']} {times:.3g} ×")
    text = "no peer of the same bytes is faster"
    if faster:
        yield f"{MISS} {text}: {'; '.join(faster)}"
    elif found["cases"]:
        yield f"{PASS} {text}, on any of {len(found['cases'])} cases"
    else:
        yield f"{UNMEASURED} {text}"


def _small(found: Found) -> Iterator[str]:
    small = _case(found, "small")
    for ours, least in ((TENSORS, 40.0), (FLAT, 300.0)):
        times = _median(small, "radam-foreach", "times_ours", ours)
        text = f"10,000 × 64: torch RAdam, foreach takes {least:g} times as long as {ours}"
        yield _line(text, times, lambda value, least=least: value >= least, " ×")


def _growth(found: Found) -> Iterator[str]:
    """Microseconds that each more tensor costs, for the same elements."""
    few, many = _case(found, "tensors-100"), _case(found, "tensors-10000")
    for ours, most in ((TENSORS, 0.3), (FLAT, 0.02)):
        low, high = _median(few, ours, "ms"), _median(many, ours, "ms")
        slope = None if low is None or high is None else 1e3 * (high - low) / 9900
        yield _line(f"{ours}: at most {most} µs a tensor more", slope, lambda value, most=most: value <= most, " µs")


def lines(found: Found) -> list[str]:
    """Every promise with its verdict."""
    return [*_floors(found), *_nobody_faster(found), *_small(found), *_growth(found)]
