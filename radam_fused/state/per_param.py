"""A bucket for each parameter, for a step that takes one parameter at a time (gradient_release.py).

What `BucketManager` does once a step for all parameters is done here for one, at a cost that does not depend on how
many there are. Parameters may be stepped on several CUDA streams at once: what belongs to one of them is made on the
stream that steps it, or waited for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..device import NEW_STATE, capturing
from .bucket import Bucket
from .bucket_manager import BucketManager
from .checkpoint import has_state
from .membership import is_current, stepping
from .transaction import Transaction


class PerParamBuckets(BucketManager):
    """`BucketManager`, with the same arguments, but a bucket for each parameter."""

    _per_param = True

    def __init__(self, *args: Any) -> None:
        self._bucket_of: dict[Tensor, Bucket] = {}
        self._positions: dict[Tensor, tuple[int, int]] = {}
        super().__init__(*args)

    def _all_positions(self) -> dict[Tensor, tuple[int, int]]:
        """The index of every parameter's group, and its index in that group."""
        return {p: (index, k) for index, group in enumerate(self.groups) for k, p in enumerate(group["params"])}

    def _update_layout(self, *args: Any, **options: Any) -> None:
        super()._update_layout(*args, **options)
        self._bucket_of = {bucket.params[0]: bucket for bucket in self.buckets}
        self._positions = self._all_positions()
        self._looked_at = []  # `bucket_of` checks the bucket that it returns

    def bucket_of(self, p: Tensor, groups: list[dict[str, Any]], state: dict[Tensor, Any]) -> Bucket | None:
        """The bucket of a parameter that has a gradient, made now where it has none yet.

        None where user code has edited the optimizer's groups or state, as far as this parameter shows it. The next
        `FusedRAdam.step` then checks all of them, lays out again what has changed, and steps the parameter.
        """
        position = self._positions.get(p)
        if position is None or self.edited or groups is not self.groups or state is not self._state:
            return None
        index, k = position
        if index >= len(groups) or k >= len(groups[index]["params"]) or groups[index]["params"][k] is not p:
            return None
        bucket = self._bucket_of.get(p)
        if bucket is None:
            if has_state(state.get(p)):
                return None
            self._add_waiting(p.device)
            return self._bucket_of[p]
        if not is_current(bucket, state, [index]):
            self._snapshot = None
            return None
        return bucket

    def _add_waiting(self, device: torch.device) -> None:
        """Gives buckets to all parameters that may get a gradient, and waits until every stream can use them.

        All at once: state that is allocated between two gradients, and stays, would fragment the memory for later ones.
        """
        if capturing(device):
            raise RuntimeError(NEW_STATE)
        known = len(self.buckets)
        self._add_params(stepping(self._waiting_params()), attach=False)
        for placed_on in {bucket.device for bucket in self.buckets[known:]}:
            if placed_on.type == "cuda":
                torch.cuda.current_stream(placed_on).synchronize()

    def publish_new(self, bucket: Bucket, segments: list[int], transaction: Transaction) -> None:
        """See `BucketManager.publish_new`."""
        bucket.unconfirmed = transaction
        if self._publish_missing(bucket, segments, transaction):
            self._snapshot = None  # to take one for each parameter would be quadratic
