"""In which order the tests of a mutant run, and how many of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence


def function_of(mutant: str) -> str:
    return mutant.partition("__mutmut_")[0]


def in_order(tests: Iterable[str], seconds: Mapping[str, float], killers: Sequence[str], limit: float) -> list[str]:
    """The tests of a mutant: those that killed others of its function, one case of each test, another of each, ..."""
    cases: dict[str, list[str]] = defaultdict(list)
    for test in sorted(tests, key=lambda test: (seconds.get(test, 0.0), test)):
        cases[test.partition("[")[0]].append(test)
    place = {test: number for group in cases.values() for number, test in enumerate(group)}
    known = {test: number for number, test in enumerate(killers)}
    chosen, spent = [], 0.0
    for test in sorted(place, key=lambda test: (-known.get(test, -1), place[test], seconds.get(test, 0.0), test)):
        spent += seconds.get(test, 0.0)
        if chosen and spent > limit:
            break
        chosen.append(test)
    return chosen
