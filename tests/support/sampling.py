"""Which cases of a test are quick: `make test` runs those, `make test-all` runs all.

A test with several parameters has a case for each combination of their values. Most combinations show what others show:
``@pytest.mark.sampled`` keeps so many that every value of every parameter occurs, ``@pytest.mark.sampled(ways=2)`` so
many that every pair of values does. Under ``parts=True`` the members of a tuple and the fields of a dataclass count as
values of their own. The other cases are marked ``long``, as are whole tests by ``@pytest.mark.long``.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

WHOLE = os.environ.get("RADAM_FUSED_TEST_WHOLE") == "1"
"""``make faults``: tests that try one place of failure after another try all of them."""
Case = Mapping[str, int]
"""The parameters of a case by name, with a number for each value."""


def tuples_of(case: Case, ways: int) -> frozenset[tuple[tuple[str, int], ...]]:
    """The values of a case (ways=1), its pairs of values (ways=2), and so on."""
    return frozenset(itertools.combinations(sorted(case.items()), min(ways, len(case))))


def sample(cases: Sequence[Case], ways: int) -> set[int]:
    """The places of few cases in which everything occurs that occurs in all: greedily, the first of the best ones."""
    left = {place: tuples_of(case, ways) for place, case in enumerate(cases)}
    missing = frozenset().union(*left.values())
    chosen = set()
    while missing:
        best = max(left, key=lambda place: len(left[place] & missing))
        missing -= left.pop(best)
        chosen.add(best)
    return chosen


def values_of(params: Mapping[str, Any], parts: bool) -> Case:
    """The parameters of a case as numbers: an object's identity, as the cases share their values, or a part's text."""
    found: dict[str, int] = {}
    for name, value in params.items():
        if parts and isinstance(value, tuple):
            found |= {f"{name}.{member}": 1 for member in value}
        elif parts and is_dataclass(value):
            found |= {f"{name}.{one.name}": hash(repr(getattr(value, one.name))) for one in fields(value)}
        else:
            found[name] = id(value)
    return found


def mark_long(items: Sequence[pytest.Item]) -> None:
    """Marks the cases that are no part of their test's sample."""
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled") and hasattr(item, "callspec"):
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in tests.values():
        marker = cases[0].get_closest_marker("sampled")
        parts, ways = marker.kwargs.get("parts", False), marker.kwargs.get("ways", 1)
        chosen = sample([values_of(case.callspec.params, parts) for case in cases], ways)
        for place, case in enumerate(cases):
            if place not in chosen:
                case.add_marker(pytest.mark.long)
