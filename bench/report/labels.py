"""What tables and pictures call the CPU suite's candidates."""

from __future__ import annotations

from typing import Any

from bench import keys
from bench.optimizers.candidates import CPU_CANDIDATES


def label(name: str, row: dict[str, Any]) -> str:
    """A candidate's label: today's where its name is known, otherwise that of the result file."""
    return CPU_CANDIDATES[name].label if name in CPU_CANDIDATES else row["label"]


def labels(cases: list[dict[str, Any]]) -> dict[str, str]:
    """The labels of all candidates in these cases, by name."""
    return {name: label(name, row) for case in cases for name, row in case[keys.CANDIDATES].items()}
