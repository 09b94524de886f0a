"""A bucket for each parameter, for a step that takes one parameter at a time (backward.py).

What `Placement` does once a step for all parameters is done here for one, at a cost that does not depend on how many
there are. Parameters may be stepped on several CUDA streams at once: what belongs to one of them is made on the stream
that steps it, or waited for.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from .bucket import Bucket
from .launches import Launch
from .placement import Placement
from .scalars import capturing


class SeparatePlacement(Placement):
    """`Placement`, with the same arguments, but a bucket for each parameter."""

    def __init__(self, *args: Any) -> None:
        self._bucket_of: dict[Tensor, Bucket] = {}
        self._shown: dict[Tensor, Any] = {}
        super().__init__(*args)
        self._seats = self._all_seats()

    def add(self, index: int) -> None:
        """See `Placement.add`."""
        super().add(index)
        self._seats = self._all_seats()

    def _all_seats(self) -> dict[Tensor, tuple[int, int]]:
        """Of every parameter its group, and its place in it."""
        return {p: (index, k) for index, group in enumerate(self._groups) for k, p in enumerate(group["params"])}

    def _kind(self, p: Tensor) -> Hashable:
        return p

    def _place(self, arrivals: list[tuple[Tensor, int]], attach: bool) -> None:
        known = len(self.buckets)
        super()._place(arrivals, attach)
        self._bucket_of.update((bucket.params[0], bucket) for bucket in self.buckets[known:])

    def bucket_of(self, p: Tensor, groups: list[dict[str, Any]], state: dict[Tensor, Any]) -> Bucket | None:
        """The bucket of a parameter that has a gradient, made now where it has none yet.

        None where somebody has edited the optimizer's groups or state, as far as this parameter shows it: it is then
        left to the next `FusedRAdam.step`, which looks at all of them and lays out anew what has changed.
        """
        seat = self._seats.get(p)
        if seat is None or self._journal.changed or groups is not self._groups or state is not self._state:
            return None
        index, k = seat
        if index >= len(groups) or k >= len(groups[index]["params"]) or groups[index]["params"][k] is not p:
            return None
        if (state.get(p) or None) is not self._shown.get(p):
            return None
        if p not in self._bucket_of:
            self._place_waiting(p.device)
        return self._bucket_of[p]

    def _place_waiting(self, device: torch.device) -> None:
        """Gives buckets to all parameters that may get a gradient, and waits until they are there for every stream.

        All at once, as memory that is made between two gradients, and stays, leaves holes between those to come.
        """
        if capturing(device):
            raise RuntimeError("a CUDA graph captures the first step of a parameter: let it take one step before")
        known = len(self.buckets)
        self._place(self._stepping(), attach=False)
        for placed_on in {bucket.device for bucket in self.buckets[known:]}:
            if placed_on.type == "cuda":
                torch.cuda.current_stream(placed_on).synchronize()

    def _show(self, bucket: Bucket, segment: int) -> None:
        p = bucket.params[segment]
        if p in self._shown and self._state.get(p) is self._shown[p]:
            dict.update(self._shown[p], bucket.state(segment))  # noted by nobody, as it is the same entry
        else:
            super()._show(bucket, segment)
            self._shown[p] = self._state[p]

    def collect(self, bucket: Bucket, sure: bool = True) -> Launch | None:
        """See `Placement.collect`; a bucket without a gradient keeps its plan for the next."""
        return None if bucket.params[0].grad is None else super().collect(bucket, sure)

    def count_alone_on_device(self, bucket: Bucket) -> None:
        """`Placement.count_on_device`, for one bucket."""
        if not bucket.counted_on_device:
            bucket.count_on_device()
            self._show_all(bucket)

    def follow_strides(self, bucket: Bucket) -> bool:
        """See `Placement.follow_strides`."""
        moved = bucket.follow_strides()
        if moved and bucket.params[0] in self._shown:
            self._show(bucket, 0)
        return bool(moved)

    def stepped(self, launch: Launch) -> None:
        """See `Placement.stepped`."""
        launch.bucket.count_step(launch.plan, unwatched=launch.addresses is not None)
        p = launch.bucket.params[0]
        if p not in self._shown:
            new = p not in self._state
            self._show(launch.bucket, 0)
            if new:
                self._entries.append(self._state[p])
        launch.plan.first = False
