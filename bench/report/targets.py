"""Performance targets: each one gets a verdict from a run's results. `lines` has the targets of the CPU suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import ge, le
from typing import Any

from bench import keys
from bench.report.document import plain

PASS, MISS, UNMEASURED = "PASS", "MISS", "UNMEASURED"
FLAT, TENSORS = "fused-flat", "fused"

Found = dict[str, Any]


def verdict(target: str, values: Mapping[str, float | None], holds: Callable[[float], bool], unit: str = "") -> str:
    """One target as a line: the verdict, the target, and the measured values behind it.

    Args:
        values: by name; the name may be empty where there is one. None for a value that was not measured.
        holds: whether a value meets the target; all must.
    """
    known = [value for value in values.values() if value is not None]
    status = UNMEASURED if not values or len(known) < len(values) else PASS
    if not all(map(holds, known)):
        status = MISS
    numbers = [f"{name} {plain(value, unit)}" if value is not None else f"{name} –" for name, value in values.items()]
    return f"{status} {target}: {', '.join(number.strip() for number in numbers) or 'nothing measured'}"


def at_least(least: float) -> Callable[[float], bool]:
    return partial(le, least)


def at_most(most: float) -> Callable[[float], bool]:
    return partial(ge, most)


def _case(found: Found, name: str) -> dict[str, Any] | None:
    return next((case for case in found["cases"] if case["name"] == name), None)


def _median(case: dict[str, Any] | None, candidate: str, key: str, part: str | None = None) -> float | None:
    """A number of a row; None where there is no such row."""
    row = case[keys.CANDIDATES].get(candidate) if case else None
    value = row.get(key) if row else None
    if part is not None:
        value = value.get(part) if value else None
    return value["median"] if value else None


def _bandwidth(found: Found) -> Iterator[str]:
    """A step's bandwidth as a share of the roofline's."""
    for name in ("16M", "gpt2"):
        for ours in (FLAT, TENSORS):
            share = _median(_case(found, name), ours, "share_of_floor")
            percent = None if share is None else 100 * share
            yield verdict(f"{name}: {ours} at 90 % of the roofline", {"": percent}, at_least(90.0), " %")


def _no_faster_baseline(found: Found) -> Iterator[str]:
    """The faster of ours against every baseline that moves the same bytes, in every case."""
    faster = []
    for case in found["cases"]:
        for row in case[keys.CANDIDATES].values():
            if row["role"] == keys.BASELINE and row["bytes_per_element"] == 28 and row["times_ours"]:
                times = max(ratio["median"] for ratio in row["times_ours"].values())
                if times < 1.0:
                    faster.append(f"{case['title']}, {row['label']} {times:.3g} ×")
    target = "no baseline of the same bytes is faster"
    if faster:
        yield f"{MISS} {target}: {'; '.join(faster)}"
    elif found["cases"]:
        yield f"{PASS} {target}, on any of {len(found['cases'])} cases"
    else:
        yield f"{UNMEASURED} {target}"


def _small(found: Found) -> Iterator[str]:
    small = _case(found, "small")
    for ours, least in ((TENSORS, 40.0), (FLAT, 300.0)):
        times = _median(small, "radam-foreach", "times_ours", ours)
        target = f"10,000 × 64: torch RAdam, foreach takes {least:g} times as long as {ours}"
        yield verdict(target, {"": times}, at_least(least), " ×")


def _scaling(found: Found) -> Iterator[str]:
    """Microseconds that each further tensor costs, for the same elements."""
    few, many = _case(found, "tensors-100"), _case(found, "tensors-10000")
    for ours, most in ((TENSORS, 0.3), (FLAT, 0.02)):
        low, high = _median(few, ours, "ms"), _median(many, ours, "ms")
        slope = None if low is None or high is None else 1e3 * (high - low) / 9900
        yield verdict(f"{ours}: at most {most} µs per further tensor", {"": slope}, at_most(most), " µs")


def lines(found: Found) -> list[str]:
    """Every target of the CPU suite with its verdict."""
    return [*_bandwidth(found), *_no_faster_baseline(found), *_small(found), *_scaling(found)]
