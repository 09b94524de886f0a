"""Whether user code has edited what an optimizer's groups and state hold, seen once a step."""

from __future__ import annotations

from array import array
from typing import Any

from torch import Tensor

from ..cpp_helpers import HAS_LOOPS, unchanged


class Snapshot:
    """Which parameters an optimizer's groups hold and which entries its state, to see whether they are still the same.

    By their ids, so that nothing is kept alive that user code has taken out.

    Args:
        groups: ``param_groups``.
        state: ``optimizer.state``.
    """

    def __init__(self, groups: list[dict[str, Any]], state: dict[Tensor, Any]) -> None:
        self._ids = _ids(groups, state)
        self.address = self._ids.buffer_info()[0] if HAS_LOOPS else 0
        """For ``unchanged`` (csrc/python/module.cpp); 0 without the extension."""

    def matches(self, groups: list[dict[str, Any]], state: dict[Tensor, Any]) -> bool:
        """Whether groups hold the very parameters and the state the very entries that they did, in the same order."""
        if not HAS_LOOPS:
            return _ids(groups, state) == self._ids
        return unchanged(groups, state, self.address)


def _ids(groups: list[dict[str, Any]], state: dict[Tensor, Any]) -> array[int]:
    """In the order in which ``unchanged`` (csrc/python/module.cpp) reads them."""
    ids = [len(state), *map(id, state.values()), len(groups)]
    for group in groups:
        ids += [len(group["params"]), *map(id, group["params"])]
    return array("Q", ids)
