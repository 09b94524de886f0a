"""What `make test` leaves to `make test-all`: cases whose values occur in others (tests/support/sampling.py)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest

from tests.support.sampling import Case, sample, tuples_of, values_of

GRIDS: dict[str, list[Case]] = {
    "one": [{"a": k} for k in range(5)],
    "product": [dict(zip("abc", values, strict=True)) for values in itertools.product(range(4), range(3), range(2))],
    "gaps": [{"a": a, "b": b} for a in range(6) for b in range(6) if a <= b],
}


@pytest.mark.parametrize("ways", [1, 2])
@pytest.mark.parametrize("grid", GRIDS)
def test_everything_occurs(grid: str, ways: int) -> None:
    cases = GRIDS[grid]
    chosen = sample(cases, ways)

    def found(places: set[int]) -> set[tuple]:
        return set().union(*(tuples_of(cases[place], ways) for place in places))

    everything = found(set(range(len(cases))))
    assert found(chosen) == everything
    assert all(found(chosen - {place}) < everything for place in chosen)  # the negative control: each one is needed


def test_samples_are_small() -> None:
    assert len(sample(GRIDS["one"], 1)) == 5
    assert len(sample(GRIDS["product"], 1)) == 4
    assert len(sample(GRIDS["product"], 2)) == 12
    assert len(sample(GRIDS["gaps"], 1)) < 10


def cases_of(request: pytest.FixtureRequest) -> list[pytest.Item]:
    """All cases of the test that asks."""
    test = request.node.nodeid.partition("[")[0]
    return [item for item in request.session.items if item.nodeid.partition("[")[0] == test]


@pytest.mark.sampled
@pytest.mark.parametrize("b", range(3))
@pytest.mark.parametrize("a", range(3))
def test_the_rest_is_long(a: int, b: int, request: pytest.FixtureRequest) -> None:
    quick = [item for item in cases_of(request) if item.get_closest_marker("long") is None]
    assert len(quick) <= 3


@dataclass(frozen=True)
class Cell:
    state: int
    rounded: bool


def test_fields_are_values() -> None:
    cells = [Cell(state, rounded) for state in range(3) for rounded in (False, True)]
    chosen = [cells[place] for place in sample([values_of({"cell": cell}, parts=True) for cell in cells], 1)]
    assert len(chosen) == 3
    assert {one.state for one in chosen} == {0, 1, 2}
    assert {one.rounded for one in chosen} == {False, True}
    assert len(sample([values_of({"cell": cell}, parts=False) for cell in cells], 1)) == 6  # the negative control


def test_members_are_values() -> None:
    features = [("a",), ("b",), ("a", "b"), ("c", "a"), ("b", "c")]
    chosen = sample([values_of({"features": one}, parts=True) for one in features], 1)
    assert len(chosen) == 2
    assert {name for place in chosen for name in features[place]} == {"a", "b", "c"}
