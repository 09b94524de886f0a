"""Who runs at the same time: as many as fit in memory, FusedRAdam and the ceiling always among them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.harness.cache_state import FLUSH_BYTES
from bench.harness.machine import available_gib
from bench.optimizers.candidates import ALWAYS, Contestant
from bench.workloads.cases import Case

SPARE = 0.05
"""The part of the free memory that stays free."""


class NotEnoughMemory(Exception):
    """A case that would drive the machine into swapping."""


def bytes_needed(case: Case, contestants: Sequence[Contestant]) -> int:
    """Memory for a heat, about: starting values, gradients, the flush, and what the contestants hold."""
    return (2 + sum(c.arrays for c in contestants)) * case.array_bytes + FLUSH_BYTES


def divide(case: Case, contestants: Sequence[Contestant]) -> tuple[list[list[Contestant]], dict[str, str]]:
    """The heats of a case, in the order of the contestants, and the peers that do not fit, each with the reason.

    Raises:
        NotEnoughMemory: those of `ALWAYS` do not fit, as far as the operating system tells.
    """
    constant = [c for c in contestants if c.name in ALWAYS]
    free = available_gib()
    gib = math.inf if free is None else (1.0 - SPARE) * free

    def lacking(members: Sequence[Contestant]) -> str | None:
        needed = bytes_needed(case, members) / 2**30
        return f"needs about {needed:.1f} GiB of memory, {gib:.1f} are free" if needed > gib else None

    short = lacking(constant)
    if short:
        raise NotEnoughMemory(short)
    heats: list[list[Contestant]] = []
    left_out: dict[str, str] = {}
    for peer in (c for c in contestants if c.name not in ALWAYS):
        if heats and not lacking([*heats[-1], peer]):
            heats[-1].append(peer)
        elif short := lacking([*constant, peer]):
            left_out[peer.name] = short
        else:
            heats.append([*constant, peer])
    return heats or [constant], left_out
