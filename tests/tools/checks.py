"""What the runs of an option in a tool have to show."""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed.ranks import Failed, Ranks
from tests.tools.small import SAVED_AT, STEPS, Run
from tests.tools.table import cell

_seen: dict[Any, list[Run]] = {}
"""The runs that several options are compared with, by what was run."""
TOLERANCES = {"int8": 2e-3, "split": 2e-2}
"""How far, relatively, losses may be from torch.optim.RAdam's in float32; under ``split`` the model is bfloat16."""


def _run(ranks: Ranks, train: Any, args: tuple[Any, ...], option: str, theirs: bool) -> list[Run]:
    key = (id(ranks), train, args, "plain" if theirs else option, theirs)
    if key not in _seen:
        _seen[key] = ranks.run(2, train, *args, option, theirs)
    return _seen[key]


def check(ranks: Ranks, tool: str, option: str, sentence: str, train: Any, *args: Any, rounding: float = 2e-6) -> None:
    """Runs an option in a tool on both ranks, and checks that it does what the table says.

    Args:
        ranks: the processes.
        tool: the table's row.
        option: its column.
        sentence: a part of what an error says.
        train: takes args, an option and whether torch.optim.RAdam is to train, and returns a `Run`.
        args: handed on.
        rounding: by how much the losses may differ from torch.optim.RAdam's, relatively.
    """
    word = cell(tool, option)
    assert word != "none"
    if word == "error":
        assert sentence
        for outcome in ranks.outcomes(2, train, *args, option, False):
            assert isinstance(outcome, Failed), outcome
            assert outcome.name in ("ValueError", "TypeError", "RuntimeError", "NotImplementedError"), outcome
            assert sentence in outcome.message, outcome
        return
    assert word in ("works", "no effect")
    runs = _run(ranks, train, args, option, False)
    for ours, theirs in zip(runs, _run(ranks, train, args, option, True), strict=True):
        assert ours.losses == pytest.approx(theirs.losses, rel=max(rounding, TOLERANCES.get(option, 0)))
        assert len(ours.losses) == STEPS
        assert ours.resumed == ours.losses[SAVED_AT:]
        assert len(ours.layouts) >= STEPS
        assert not any(ours.layouts[1:])
    if word == "no effect":
        assert [run.losses for run in runs] == [run.losses for run in _run(ranks, train, args, "plain", False)]
