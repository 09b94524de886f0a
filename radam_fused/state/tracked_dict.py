"""One parameter's entry of ``optimizer.state``: a dict that notes when somebody puts another tensor into it.

The tensors are views of flat buffers. Writing into one is seen by the next step without further ado; replacing one is
not, so an entry notes it, and the next step lays the buffers out anew from what it holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Journal:
    """Shared by the entries of an optimizer: whether one of them has changed."""

    def __init__(self) -> None:
        self.changed = False


def _noting(name: str) -> Callable[..., Any]:
    plain = getattr(dict, name)

    def method(self: ParameterState, *args: Any, **kwargs: Any) -> Any:
        self.journal.changed = True
        return plain(self, *args, **kwargs)

    method.__name__ = name
    return method


class ParameterState(dict[str, Any]):
    """A dict that notes every change of what it holds; copies and pickles are plain dicts."""

    def __init__(self, values: dict[str, Any], journal: Journal) -> None:
        super().__init__(values)
        self.journal = journal

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)

    def __setitem__(self, key: str, value: Any) -> None:
        # What is there already may be put there again: torch.compile does so with every step count.
        self.journal.changed |= self.get(key) is not value
        super().__setitem__(key, value)


for _name in ("__delitem__", "__ior__", "clear", "pop", "popitem", "setdefault", "update"):
    setattr(ParameterState, _name, _noting(_name))
