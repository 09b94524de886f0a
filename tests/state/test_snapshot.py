"""Whether user code has edited groups or state is seen, with the extension's loop and without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from radam_fused.state import snapshot
from radam_fused.state.snapshot import Snapshot


def kept() -> tuple[list[dict[str, Any]], dict[Tensor, Any]]:
    params = [torch.zeros(n) for n in (1, 2, 3)]
    return [{"params": params[:2]}, {"params": params[2:]}], {p: {} for p in params[:2]}


EDITS: dict[str, Callable[[list[dict[str, Any]], dict[Tensor, Any]], Any]] = {
    "another parameter": lambda groups, state: groups[1].update(params=[torch.zeros(3)]),
    "one more parameter": lambda groups, state: groups[1]["params"].append(torch.zeros(3)),
    "another order": lambda groups, state: groups[0]["params"].reverse(),
    "moved to another group": lambda groups, state: groups[1]["params"].insert(0, groups[0]["params"].pop()),
    "one more group": lambda groups, state: groups.append({"params": []}),
    "another entry": lambda groups, state: state.update({groups[0]["params"][0]: {"step": 1}}),
    "one entry less": lambda groups, state: state.popitem(),
    "cleared": lambda groups, state: state.clear(),
}


@pytest.fixture(params=[True, False], ids=["c", "python"])
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the extension's loop compares."""
    if request.param and not snapshot.HAS_LOOPS:
        pytest.skip("no extension")
    monkeypatch.setattr(snapshot, "HAS_LOOPS", request.param)
    return request.param


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_seen(edit: str, loops: bool) -> None:
    groups, state = kept()
    taken = Snapshot(groups, state)
    assert taken.matches(groups, state)
    EDITS[edit](groups, state)
    assert not taken.matches(groups, state)


def test_other_values_are_no_edit(loops: bool) -> None:
    groups, state = kept()
    taken = Snapshot(groups, state)
    groups[0]["lr"] = 0.5
    groups[0]["params"][0].fill_(2.0)
    state[groups[0]["params"][0]]["step"] = 4
    assert taken.matches(groups, state)
    assert (taken.address != 0) == loops
