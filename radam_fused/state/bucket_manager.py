"""Assigns parameters to buckets, and rebuilds buckets when user code has edited ``param_groups`` or ``state``.

A parameter gets its bucket with its first gradient. User code may edit ``param_groups`` and ``state`` between steps. A
bucket whose parameters and state are the same as before stays as it is, even if its parameters are in other groups now.
Every other bucket is built again from what ``state`` holds. New buckets are made while the old ones stay in place, and
replace them at the end (`Transaction`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..cpp_helpers import unchanged, views_intact
from ..numerics.state_format import FULL_PRECISION, StateFormat
from .bucket import Bucket
from .bucket_builder import Backend, BucketBuilder
from .checkpoint import has_state
from .codec import NAMES
from .flat_buffers import FlatBuffers
from .membership import is_current, is_unused, members_of, names_of, stepping
from .snapshot import Snapshot
from .tracked_dict import DirtyFlag
from .transaction import Transaction

_serial = itertools.count()


class BucketManager:
    """The buckets of an optimizer's parameters.

    Args:
        groups: the optimizer's ``param_groups``; all state in ``state`` is taken over.
        state: the optimizer's ``state``, which this fills as parameters take their first steps.
        backend: who steps the buckets.
        flatten: make parameters and gradients views of flat buffers, at once.
        attach: under ``flatten``, give parameters without a gradient a zero one.
        offload: keep moments on the CPU, and step there (backends/offload.py).
        storage: how the state is stored.
        before: the manager that has stored the state until now, if any: it knows the exact step counts.
        within: the transaction that this is a part of, if any.

    Attributes:
        name: of this layout; a new layout has a new name. A guard of a compiled step.
        buckets: in the order they were made.
        ops: the operators that step each (`radam_fused.backends.ops.Operators`).
        flat_buffers: of each, under ``flatten``.
        groups: the optimizer's, as last seen.
        flatten, offload: as given.
    """

    _per_param = False  # whether each parameter gets a bucket of its own

    def __init__(
        self,
        groups: list[dict[str, Any]],
        state: dict[Tensor, Any],
        backend: Backend,
        flatten: bool,
        attach: bool,
        offload: bool = False,
        storage: StateFormat = FULL_PRECISION,
        before: BucketManager | None = None,
        within: Transaction | None = None,
    ) -> None:
        self.groups = groups
        self._state = state
        self.flatten = flatten
        self.offload = offload
        self._dirty = DirtyFlag()
        self._builder = BucketBuilder(backend, storage, flatten, offload, self._per_param, self._dirty)
        self._snapshot: Snapshot | None = None
        self.buckets: list[Bucket] = []
        self.ops: dict[Bucket, Any] = {}
        self.flat_buffers: dict[Bucket, FlatBuffers] = {}
        members = members_of(groups)
        new_params = stepping(members) if flatten else [(p, i) for p, i in members if has_state(state.get(p))]
        self._update_layout(groups, state, [], new_params, attach, () if before is None else before.buckets, within)

    def add(self, index: int, transaction: Transaction) -> None:
        """Gives buckets to the parameters of a group that user code has just added.

        Args:
            index: of the group.
            transaction: undoes all of it if it fails.
        """
        members = [(p, i) for p, i in self._waiting_params() if i != index]
        members += [(p, index) for p in self.groups[index]["params"]]
        kept = [(bucket, bucket.groups) for bucket in self.buckets]
        new_params = stepping(members) if self.flatten else []
        self._update_layout(self.groups, self._state, kept, new_params, True, (), transaction)

    # Noticing what user code has changed.

    @property
    def edited(self) -> bool:
        """Whether user code has put another tensor into an entry of the state."""
        return self._dirty.is_set

    def outdated(self, groups: list[dict[str, Any]], state: dict[Tensor, Any]) -> bool:
        """Whether user code has edited the optimizer's groups or state since the last layout."""
        snapshot = None if self._dirty.is_set else self._snapshot
        if snapshot is None:
            return True
        # A Python call costs a microsecond where a training step has evicted the caches, so this makes few.
        if not (unchanged(groups, state, snapshot.address) if snapshot.address else snapshot.matches(groups, state)):
            return True
        for bucket in self._looked_at:
            views = bucket.views
            if not (views_intact(*views.few) if views.few is not None else views.intact()):
                return True
        return False

    def refresh(self, groups: list[dict[str, Any]], state: dict[Tensor, Any]) -> None:
        """Rebuilds the buckets whose parameters or state user code has edited; most often none."""
        if not self.outdated(groups, state):
            self.groups, self._state = groups, state
            return
        members = members_of(groups)
        index_of = dict(members)
        kept, replaced, unused = [], [], []
        for bucket in self.buckets:
            indices = [index_of.get(p, -1) for p in bucket.params]
            if self.flatten and is_unused(bucket, indices):
                unused.append(bucket)
            elif is_current(bucket, state, indices):
                kept.append((bucket, indices))
            else:
                replaced.append(bucket)
        known = {p for bucket, _ in kept for p in bucket.params}
        waiting = [(p, index) for p, index in members if p not in known]
        new_params = stepping(waiting) if self.flatten else [(p, i) for p, i in waiting if has_state(state.get(p))]
        self._update_layout(groups, state, kept, new_params, False, replaced, unused=unused)

    def refresh_thoroughly(self, groups: list[dict[str, Any]], state: dict[Tensor, Any]) -> None:
        """As `refresh`, but checks every view of the state: before the state is saved, for example."""
        if not all(bucket.intact(thoroughly=True) for bucket in self.buckets):
            self._snapshot = None
        self.refresh(groups, state)

    # Making buckets.

    def _waiting_params(self) -> list[tuple[Tensor, int]]:
        """The parameters without a bucket, by the index of their group."""
        return [(self.groups[index]["params"][k], index) for index, places in self._waiting for k in places]

    def add_new_params(self) -> None:
        """Gives a bucket to every parameter that has its first gradient, and to those that may get one with it."""
        for index, places in self._waiting:
            params = self.groups[index]["params"]
            if any(params[k].grad is not None for k in places):
                self._add_params(stepping(self._waiting_params()), attach=False)
                return

    def _add_params(self, new_params: list[tuple[Tensor, int]], attach: bool) -> None:
        """Gives buckets to these parameters."""
        kept = [(bucket, bucket.groups) for bucket in self.buckets]
        self._update_layout(self.groups, self._state, kept, new_params, attach)

    def _update_layout(
        self,
        groups: list[dict[str, Any]],
        state: dict[Tensor, Any],
        kept: list[tuple[Bucket, list[int]]],
        new_params: list[tuple[Tensor, int]],
        attach: bool,
        replaced: Sequence[Bucket] = (),
        within: Transaction | None = None,
        unused: Sequence[Bucket] = (),
    ) -> None:
        """Makes buckets for new parameters; with the buckets kept they are the layout from now on. All or nothing.

        Args:
            groups: the optimizer's ``param_groups``.
            state: its ``state``.
            kept: buckets that stay, and for each the indices of its parameters' groups, -1 for one in none.
            new_params: parameters that get a bucket, and the indices of their groups.
            attach: under ``flatten``, give parameters without a gradient a zero one.
            replaced: buckets that have held some of them, and know their exact step counts.
            within: the transaction that this is a part of, if any.
            unused: buckets that go, and with them the state that `_publish` has shown of their parameters.

        Under ``flatten`` the state of a parameter with a gradient is shown at once: torch's distributed state_dict
        makes state for a fresh optimizer only where no parameter has a gradient.
        """
        absent = [
            bucket.params[k]
            for bucket, indices in kept
            for k, i in enumerate(indices)
            if i < 0 and bucket.counts.begun(k)
        ]
        made = self._builder.build(groups, state, new_params, attach, replaced, absent)
        placed = {p for bucket, _ in kept for p in bucket.params} | {p for p, _ in new_params}
        with Transaction() if within is None else nullcontext(within) as transaction:
            transaction.keep_attributes(self)
            for bucket, indices in kept:
                transaction.on_failure(bucket.set_groups, bucket.groups)
                bucket.set_groups(indices)
            for one in made:
                if one.flat is not None:
                    one.flat.bind(transaction)
                for segment, p in enumerate(one.bucket.params):
                    if has_state(state.get(p)) or (self.flatten and p.grad is not None):
                        transaction.keep_item(state, p)
                        self._publish(one.bucket, segment, state)
                one.bucket.record_views()
            for bucket in unused:
                for p, reference in zip(bucket.params, bucket.entries, strict=True):
                    if reference is not None and reference() is state.get(p):
                        transaction.keep_item(state, p)
                        del state[p]
            self.name = f"layout {next(_serial)}"
            self.groups, self._state = groups, state
            place_of = {p: place for place, (p, _) in enumerate(members_of(groups))}
            buckets = [bucket for bucket, _ in kept] + [one.bucket for one in made]
            for bucket in buckets:
                transaction.on_failure(bucket.set_places, bucket.places)
                bucket.set_places([place_of.get(p, len(place_of)) for p in bucket.params])
            # In the order of their parameters, however these came here: the norm is added up in it.
            self.buckets = sorted(buckets, key=lambda bucket: min(bucket.places))
            self.ops = {b: self.ops[b] for b, _ in kept} | {one.bucket: one.ops for one in made}
            self.flat_buffers = {b: self.flat_buffers[b] for b, _ in kept if b in self.flat_buffers}
            self.flat_buffers |= {one.bucket: one.flat for one in made if one.flat is not None}
            places = ((i, [k for k, p in enumerate(g["params"]) if p not in placed]) for i, g in enumerate(groups))
            self._waiting = [(index, waiting) for index, waiting in places if waiting]
            self._looked_at = self.buckets
            self._snapshot = Snapshot(groups, state)
        self._dirty.is_set = False  # by entries that the new ones have replaced

    def _publish(self, bucket: Bucket, segment: int, state: dict[Tensor, Any]) -> None:
        """Puts views of a segment into ``optimizer.state``, in addition to what else user code keeps there."""
        p = bucket.params[segment]
        others = {name: value for name, value in state.get(p, {}).items() if name not in NAMES}
        state[p] = bucket.publish_state(segment, others)

    def count_on_device(self) -> None:
        """From now on the scalars operators count the steps: only the device may know whether one is taken."""
        for bucket in self.buckets:
            bucket.count_on_device()

    def names(self) -> dict[Tensor, str]:
        """What errors call each parameter."""
        return names_of(self.groups)

    def publish_new(self, bucket: Bucket, segments: list[int], transaction: Transaction) -> None:
        """Puts the state of segments that take their first step into ``optimizer.state``.

        Args:
            bucket: any.
            segments: of the step.
            transaction: takes it back where the step fails; the bucket's `unconfirmed` until it is taken.
        """
        bucket.unconfirmed = transaction
        if self._publish_missing(bucket, segments, transaction):
            self._snapshot = Snapshot(self.groups, self._state)

    def _publish_missing(self, bucket: Bucket, segments: list[int], transaction: Transaction) -> bool:
        """Shows the segments that have no entry yet; whether there are any."""
        new = [segment for segment in segments if bucket.entries[segment] is None]
        if new:
            transaction.on_failure(setattr, self, "_snapshot", self._snapshot)
            transaction.on_failure(setattr, bucket, "views", bucket.views)
        for segment in new:
            transaction.keep_item(self._state, bucket.params[segment])
            transaction.on_failure(bucket.withdraw, segment)
            self._publish(bucket, segment, self._state)
        if new:
            bucket.record_views()
        return bool(new)

    def zero_grads(self, set_to_none: bool) -> None:
        """Under ``flatten``: one memset per bucket; for parameters without a bucket the same as torch.optim."""
        # All that allocates, before the first gradient is cleared.
        flats = [(flat, flat.views_to_attach()) for flat in self.flat_buffers.values()]
        waiting = [(p, p.grad) for p, _ in self._waiting_params()]
        zeros = [(p, None if set_to_none else torch.zeros_like(grad)) for p, grad in waiting if grad is not None]
        for flat, views in flats:
            flat.zero_grads(views)
        for p, zero in zeros:
            p.grad = zero
        for flat, views in flats:
            if views:
                flat.record_gradients()
