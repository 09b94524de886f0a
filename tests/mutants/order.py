"""In which order the tests of a mutant run, and how many of them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence


def function_of(mutant: str) -> str:
    return mutant.partition("__mutmut_")[0]


def words(name: str) -> frozenset[str]:
    """The beginnings of a name's words, so that `gradients` is `grads`."""
    return frozenset(word[:4].lower() for word in re.findall(r"[A-Za-z]{4,}", name.replace("_", " ")))


def in_order(
    tests: Iterable[str], seconds: Mapping[str, float], killers: Sequence[str], limit: float, function: str = ""
) -> list[str]:
    """The tests of a mutant, until the limit: first those that killed others of its function, the last one before.

    Then those whose names share most words with the function's and its module's; of each test one case, another of
    each, and so on; the quickest first.
    """
    cases: dict[str, list[str]] = defaultdict(list)
    for test in sorted(tests, key=lambda test: (seconds.get(test, 0.0), test)):
        cases[test.partition("[")[0]].append(test)
    own = words(function.partition(".")[2])
    shared = {name: len(own & words(name)) for name in cases}
    order = {
        test: (-shared[name], number, seconds.get(test, 0.0), test)
        for name, group in cases.items()
        for number, test in enumerate(group)
    }
    known = {test: number for number, test in enumerate(killers)}
    chosen, spent = [], 0.0
    for test in sorted(order, key=lambda test: (-known.get(test, -1), order[test])):
        spent += seconds.get(test, 0.0)
        if chosen and spent > limit:
            break
        chosen.append(test)
    return chosen
