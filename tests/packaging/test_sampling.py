"""What `make test` leaves to `make test-all`: cases whose values occur in others (tests/support/sampling.py)."""

from __future__ import annotations

import itertools

import pytest

from tests.support.sampling import Case, sample, tuples_of

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


@pytest.mark.sampled
@pytest.mark.parametrize("b", range(3))
@pytest.mark.parametrize("a", range(3))
def test_the_rest_is_long(a: int, b: int, request: pytest.FixtureRequest) -> None:
    same = [item for item in request.session.items if item.nodeid.startswith(request.node.nodeid.partition("[")[0])]
    quick = [item for item in same if item.get_closest_marker("long") is None]
    assert len(quick) <= 3
