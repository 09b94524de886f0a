"""An entry of ``optimizer.state`` by itself: what its owner hears of, and what a copy takes along."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from radam_fused.state.tracked_dict import ParameterState


class Owner:
    """Counts how often it was asked to drop its buffers."""

    released = 0

    def release(self) -> None:
        self.released += 1


def entry(owner: Owner) -> ParameterState:
    counts = torch.tensor([3.0, 4.0, 5.0])
    return ParameterState({"step": counts[1], "exp_avg": torch.ones(2), "note": [1]}, owner)


EDITS: dict[str, Callable[[ParameterState], Any]] = {
    "set": lambda e: e.__setitem__("exp_avg", torch.zeros(2)),
    "set new": lambda e: e.__setitem__("exp_avg_sq", torch.zeros(2)),
    "delete": lambda e: e.__delitem__("step"),
    "pop": lambda e: e.pop("exp_avg"),
    "update": lambda e: e.update(step=torch.tensor(1.0)),
    "merge": lambda e: e.__ior__({"exp_avg": torch.zeros(2)}),
    "setdefault": lambda e: e.setdefault("exp_avg_sq", torch.zeros(2)),
    "clear": lambda e: e.clear(),
}
NO_EDITS: dict[str, Callable[[ParameterState], Any]] = {
    "the same again": lambda e: e.__setitem__("exp_avg", e["exp_avg"]),
    "a note": lambda e: e.__setitem__("note", [2]),
    "one more note": lambda e: e.update(more=1),
    "a note less": lambda e: e.pop("note"),
    "the last, a note": lambda e: e.popitem(),
    "what is there": lambda e: e.setdefault("exp_avg", torch.zeros(2)),
    "in place": lambda e: e["exp_avg"].zero_(),
}


@pytest.mark.parametrize("edit", [*EDITS, *NO_EDITS])
def test_the_owner_hears_of_a_tensor_that_is_replaced(edit: str) -> None:
    owner = Owner()
    kept = entry(owner)
    expected = dict(kept)
    found = {**EDITS, **NO_EDITS}[edit](kept)
    assert owner.released == (1 if edit in EDITS else 0)
    known = {**EDITS, **NO_EDITS}[edit](plain := _Plain(expected))
    assert list(kept) == list(plain)
    assert (found is None) == (known is None)


class _Plain(dict[str, Any]):
    """A dict as Python has it."""


def test_an_edit_that_fails_is_reported_as_python_does() -> None:
    owner = Owner()
    with pytest.raises(KeyError, match="absent"):
        entry(owner).pop("absent")
    assert entry(owner).pop("absent", 7) == 7


def test_a_dropped_entry_releases_its_owner() -> None:
    owner = Owner()
    kept = entry(owner)
    assert owner.released == 0
    del kept
    assert owner.released == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))], ids=["deepcopy", "pickle"])
def test_a_copy_is_a_plain_dict_without_the_counts_of_others(copied: Callable[[Any], Any]) -> None:
    owner = Owner()
    kept = entry(owner)
    made = copied(kept)
    assert type(made) is dict
    assert (float(made["step"]), made["note"]) == (4.0, [1])
    assert made["step"].untyped_storage().nbytes() == 4  # a view would bring all three along
    assert torch.equal(made["exp_avg"], torch.ones(2))
    assert owner.released == 0
