"""Divides a case's candidates into groups that fit in memory together; FusedRAdam and the roofline are in each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.harness.cache_state import FLUSH_BYTES
from bench.harness.machine import available_gib
from bench.optimizers.candidates import ALWAYS, Candidate
from bench.workloads.cases import Case

SPARE = 0.05
"""The part of the free memory that stays free."""


class NotEnoughMemory(Exception):
    """The case would drive the machine into swapping."""


def bytes_needed(case: Case, candidates: Sequence[Candidate]) -> int:
    """Approximate memory of a group: starting values, gradients, the cache flush, and the candidates' arrays."""
    return (2 + sum(c.arrays for c in candidates)) * case.array_bytes + FLUSH_BYTES


def divide(case: Case, candidates: Sequence[Candidate]) -> tuple[list[list[Candidate]], dict[str, str]]:
    """The memory groups of a case, in the order of the candidates, and by name why a baseline fits in none.

    Raises:
        NotEnoughMemory: those of `ALWAYS` do not fit, by what the operating system reports.
    """
    constant = [c for c in candidates if c.name in ALWAYS]
    free = available_gib()
    gib = math.inf if free is None else (1.0 - SPARE) * free

    def lacking(members: Sequence[Candidate]) -> str | None:
        needed = bytes_needed(case, members) / 2**30
        return f"needs about {needed:.1f} GiB of memory, {gib:.1f} are free" if needed > gib else None

    short = lacking(constant)
    if short:
        raise NotEnoughMemory(short)
    groups: list[list[Candidate]] = []
    left_out: dict[str, str] = {}
    for baseline in (c for c in candidates if c.name not in ALWAYS):
        if groups and not lacking([*groups[-1], baseline]):
            groups[-1].append(baseline)
        elif short := lacking([*constant, baseline]):
            left_out[baseline.name] = short
        else:
            groups.append([*constant, baseline])
    return groups or [constant], left_out
