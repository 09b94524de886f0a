"""All or nothing: what is done under a `Transaction` is taken back if it does not come to its end.

Whatever makes or moves buckets first builds everything beside what is there, where an error changes nothing, and then
swaps references under a transaction, where nothing can fail but an interrupt can come.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any


class Transaction:
    """A context manager that undoes, in reverse order, what was noted under it if an exception of any kind ends it."""

    def __init__(self) -> None:
        self._undo: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def on_failure(self, undo: Callable[..., Any], *args: Any) -> None:
        """Notes a call that takes back what is done next."""
        self._undo.append((undo, args))

    def keep_attributes(self, target: Any) -> None:
        """Notes the attributes of an object as they are now."""
        self.on_failure(vars(target).update, dict(vars(target)))

    def keep_item(self, target: Any, key: Any) -> None:
        """Notes an item of a dict, or that it is missing."""
        if key in target:
            self.on_failure(target.__setitem__, key, target[key])
        else:
            self.on_failure(target.pop, key, None)

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._undo.clear()
        else:
            self.undo()

    def undo(self) -> None:
        """Takes back what was noted, in reverse order."""
        while self._undo:
            undo, args = self._undo.pop()
            undo(*args)
