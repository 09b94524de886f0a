"""One parameter's entry of ``optimizer.state``: a dict that informs its bucket when user code replaces its tensors.

The tensors are views of the bucket's buffers, so the next step uses whatever user code writes into one. If user code
replaces or removes one, or drops the entry, the bucket drops its buffers at once. Their memory is then freed with the
last view of them, and the next step lays the state out again from what the entries hold.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from .codec import NAMES

TRACKED = NAMES | {"step"}
"""The keys of an entry that a step reads. Whatever else user code keeps there is its own affair."""


class DirtyFlag:
    """Shared by the buckets of an optimizer: set once one of them has dropped its buffers."""

    def __init__(self) -> None:
        self.is_set = False


class Owner(Protocol):
    """What an entry shows the buffers of: `radam_fused.state.bucket.Bucket`."""

    def release(self) -> None:
        """Drops the buffers."""


def _no_owner() -> None:
    """What the reference to an owner returns once there is none."""


def _tracked(name: str) -> Callable[..., Any]:
    plain = getattr(dict, name)

    def method(self: ParameterState, *args: Any, **kwargs: Any) -> Any:
        before = {key: self[key] for key in TRACKED & self.keys()}
        try:
            return plain(self, *args, **kwargs)
        finally:
            after = {key: self[key] for key in TRACKED & self.keys()}
            if before.keys() != after.keys() or any(after[key] is not value for key, value in before.items()):
                self.release_owner()

    method.__name__ = name
    return method


class ParameterState(dict[str, Any]):
    """A dict whose owner lets go of its buffers when one of the `TRACKED` keys changes; copies are plain dicts."""

    def __init__(self, values: dict[str, Any], owner: Owner) -> None:
        super().__init__(values)
        self._owner: Callable[[], Owner | None] = weakref.ref(owner)

    def release_owner(self) -> None:
        """Informs the owner that this entry no longer shows its buffers."""
        owner = self._owner()
        if owner is not None:
            owner.release()

    def disown(self) -> None:
        """From now on no owner hears of this entry: one that is taken back before anyone could see it."""
        self._owner = _no_owner

    def __del__(self) -> None:
        self.release_owner()

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        # On a GPU a step count is a view that would bring the counts of its whole bucket along.
        return dict, ({k: v.clone() if isinstance(v, Tensor) and v._is_view() else v for k, v in self.items()},)

    def __setitem__(self, key: str, value: Any) -> None:
        # What is there already may be put there again: torch.compile does so with every step count.
        changes = key in TRACKED and self.get(key) is not value
        super().__setitem__(key, value)
        if changes:
            self.release_owner()


for _name in ("__delitem__", "__ior__", "clear", "pop", "popitem", "setdefault", "update"):
    setattr(ParameterState, _name, _tracked(_name))
