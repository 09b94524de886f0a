"""Where the parameters of an optimizer are stored: assigns them to buckets as gradients come.

User code may edit ``param_groups`` and ``state`` between two steps. Buckets are kept by parameter: one whose parameters
and state are still the same stays as it is, whatever the groups look like now; any other is laid out again from what
``state`` holds. All of it happens beside what is there, and is committed at the end (`Transaction`).
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends import backend_for
from ..backends.fake_tensors import faked
from ..backends.offload import Offloader
from ..backends.ops import OPERATORS, Operators
from ..cpp_helpers import gradients, unchanged, views_intact
from ..device import NEW_STATE, capturing
from ..dtensor import is_sharded
from ..numerics.layout import as_real, rng_length, rng_offset_of, segment_starts, whole_numel
from ..numerics.overlaps import layers
from ..numerics.state_format import FULL_PRECISION, StateFormat
from ..numerics.tensor_checks import may_step
from ..param_groups import check_arrivals
from ..step.grad_norm import GlobalNorm
from ..step.launch import Launch, by_lists
from ..step.parts import Given
from ..step.plan import Plan
from ..step.pointer_table import addresses, can_bypass_dispatcher, suits
from ..step.scalars import check_capture
from .bucket import Bucket
from .checkpoint import check_entry, has_state
from .codec import NAMES
from .flat_buffers import FlatBuffers
from .membership import check_flatten, is_current, members_of, names_of, stepping, without_absent
from .snapshot import Snapshot
from .tracked_dict import Edits
from .transaction import Transaction
from .views import warn_of_shared

_serial = itertools.count()


class _Made(NamedTuple):
    """A bucket that nothing refers to yet."""

    bucket: Bucket
    ops: Operators
    flat: FlatBuffers | None


class Placement:
    """The buckets of an optimizer's parameters.

    Args:
        groups: the optimizer's ``param_groups``; all state in ``state`` is adopted.
        state: the optimizer's ``state``, which this fills as parameters take their first steps.
        backend: what `radam_fused.backends.check_name` returned.
        flatten: make parameters and gradients views of flat buffers, at once.
        attach: under ``flatten``, give parameters without a gradient a zero one.
        offload: keep moments on the CPU, and step there (backends/offload.py).
        storage: how the state is stored.
        before: what has stored the state until now, if anything: it knows exact step counts.
        within: the transaction that this is a part of, if any.

    Attributes:
        name: of this layout alone, which a compiled step is guarded by.
        buckets: in the order they were made.
        ops: the operator that steps each.
        offload: as given.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        state: dict[Tensor, Any],
        backend: str,
        flatten: bool,
        attach: bool,
        offload: bool = False,
        storage: StateFormat = FULL_PRECISION,
        before: Placement | None = None,
        within: Transaction | None = None,
    ) -> None:
        self._groups = groups
        self._state = state
        self._backend = backend
        self._flatten = flatten
        self.offload = offload
        self._storage = storage
        self._offloaders: dict[torch.device, Offloader] = {}
        self._norm: GlobalNorm | None = None
        self._edits = Edits()
        self._snapshot: Snapshot | None = None
        self.buckets: list[Bucket] = []
        self.ops: dict[Bucket, Operators] = {}
        self._flats: dict[Bucket, FlatBuffers] = {}
        members = members_of(groups)
        arrivals = stepping(members) if flatten else [(p, i) for p, i in members if has_state(state.get(p))]
        self._lay_out(groups, state, [], arrivals, attach, () if before is None else before.buckets, within)

    def add(self, index: int, transaction: Transaction) -> None:
        """Takes in a group that has just been added; if the transaction fails, all is as it was."""
        members = [(p, i) for p, i in self._waiting_params() if i != index]
        members += [(p, index) for p in self._groups[index]["params"]]
        kept = [(bucket, bucket.groups) for bucket in self.buckets]
        self._lay_out(
            self._groups, self._state, kept, stepping(members) if self._flatten else [], True, (), transaction
        )

    # Noticing what user code has changed.

    @property
    def edited(self) -> bool:
        """Whether user code has put another tensor into an entry of the state."""
        return self._edits.released

    def outdated(self, groups: list[dict[str, Any]], state: dict[Tensor, Any]) -> bool:
        """Whether the optimizer's groups or state are no longer those that this has placed."""
        snapshot = None if self._edits.released else self._snapshot
        if snapshot is None:
            return True
        # Calls of Python's own cost a microsecond each where a training step has emptied the caches: few are made here.
        if not (unchanged(groups, state, snapshot.address) if snapshot.address else snapshot.matches(groups, state)):
            return True
        for bucket in self._looked_at:
            views = bucket.views
            if not (views_intact(*views.few) if views.few is not None else views.intact()):
                return True
        return False

    def refresh(self, groups: list[dict[str, Any]], state: dict[Tensor, Any]) -> None:
        """Follows what user code has made of the optimizer's groups and state; most often nothing."""
        if not self.outdated(groups, state):
            self._groups, self._state = groups, state
            return
        members = members_of(groups)
        index_of = dict(members)
        kept, replaced = [], []
        for bucket in self.buckets:
            indices = [index_of.get(p, -1) for p in bucket.params]
            if is_current(bucket, state, indices):
                kept.append((bucket, indices))
            else:
                replaced.append(bucket)
        known = {p for bucket, _ in kept for p in bucket.params}
        waiting = [(p, index) for p, index in members if p not in known]
        arrivals = stepping(waiting) if self._flatten else [(p, i) for p, i in waiting if has_state(state.get(p))]
        self._lay_out(groups, state, kept, arrivals, False, replaced)

    def settle(self, groups: list[dict[str, Any]], state: dict[Tensor, Any]) -> None:
        """As `refresh`, with a look at every view of the state: before it is saved, say."""
        if not all(bucket.intact(thoroughly=True) for bucket in self.buckets):
            self._snapshot = None
        self.refresh(groups, state)

    # Making buckets.

    def _waiting_params(self) -> list[tuple[Tensor, int]]:
        """The parameters without a bucket, by the index of their group."""
        return [(self._groups[index]["params"][k], index) for index, places in self._waiting for k in places]

    def place_arrivals(self) -> None:
        """Gives a bucket to every parameter that has its first gradient, and to those that may get one with it."""
        for index, places in self._waiting:
            params = self._groups[index]["params"]
            if any(params[k].grad is not None for k in places):
                self._place(stepping(self._waiting_params()), attach=False)
                return

    def _place(self, arrivals: list[tuple[Tensor, int]], attach: bool) -> None:
        """Gives buckets to these parameters."""
        kept = [(bucket, bucket.groups) for bucket in self.buckets]
        self._lay_out(self._groups, self._state, kept, arrivals, attach)

    def _kind(self, p: Tensor) -> Hashable:
        """The same for parameters that share a bucket."""
        return p.device, p.dtype, is_sharded(p), self._moments(p)

    def _moments(self, p: Tensor) -> torch.dtype:
        return self._storage.moment_dtype(as_real(p).dtype, whole_numel(p))

    def _origins(self, groups: list[dict[str, Any]], absent: list[Tensor]) -> dict[Tensor, int]:
        """Where the random numbers of each whole parameter begin: by its place among all, however they are bucketed.

        Those that have been stepped and are in no group now come first: DeepSpeed's ZeRO puts one parameter after
        another into a group alone, and these must not all draw the same numbers.
        """
        params = [*absent, *(p for group in groups for p in group["params"])]
        return dict(zip(params, segment_starts([rng_length(p) for p in params])[0], strict=True))

    def _lay_out(
        self,
        groups: list[dict[str, Any]],
        state: dict[Tensor, Any],
        kept: list[tuple[Bucket, list[int]]],
        arrivals: list[tuple[Tensor, int]],
        attach: bool,
        replaced: Sequence[Bucket] = (),
        within: Transaction | None = None,
    ) -> None:
        """Makes buckets for new parameters, and these and the buckets kept the layout from now on; all or nothing.

        Args:
            groups: the optimizer's ``param_groups``.
            state: its ``state``.
            kept: buckets that stay, and for each the indices of its parameters' groups, -1 for one in none.
            arrivals: parameters that get a bucket, and the indices of their groups.
            attach: under ``flatten``, give parameters without a gradient a zero one.
            replaced: buckets that have held some of them, and know their exact step counts.
            within: the transaction that this is a part of, if any.

        Under ``flatten`` the state of a parameter with a gradient is shown at once: torch's distributed state_dict
        makes state for a fresh optimizer only where no parameter has a gradient.
        """
        offloaders = dict(self._offloaders)
        absent = [
            bucket.params[k]
            for bucket, indices in kept
            for k, i in enumerate(indices)
            if i < 0 and bucket.counts.begun(k)
        ]
        made = self._build(groups, state, arrivals, attach, replaced, offloaders, absent)
        placed = {p for bucket, _ in kept for p in bucket.params} | {p for p, _ in arrivals}
        with Transaction() if within is None else nullcontext(within) as transaction:
            transaction.keep_attributes(self)
            for bucket, indices in kept:
                transaction.on_failure(bucket.set_groups, bucket.groups)
                bucket.set_groups(indices)
            for one in made:
                if one.flat is not None:
                    one.flat.bind(transaction)
                for segment, p in enumerate(one.bucket.params):
                    if has_state(state.get(p)) or (self._flatten and p.grad is not None):
                        transaction.keep_item(state, p)
                        self._show(one.bucket, segment, state)
                one.bucket.note_shown()
            self.name = f"placement {next(_serial)}"
            self._groups, self._state = groups, state
            self._offloaders = offloaders
            self._norm = None
            self.buckets = [bucket for bucket, _ in kept] + [one.bucket for one in made]
            self.ops = {b: self.ops[b] for b, _ in kept} | {one.bucket: one.ops for one in made}
            self._flats = {b: self._flats[b] for b, _ in kept if b in self._flats}
            self._flats |= {one.bucket: one.flat for one in made if one.flat is not None}
            places = ((i, [k for k, p in enumerate(g["params"]) if p not in placed]) for i, g in enumerate(groups))
            self._waiting = [(index, waiting) for index, waiting in places if waiting]
            self._looked_at = self.buckets
            self._snapshot = Snapshot(groups, state)
        self._edits.released = False  # by entries that the new ones have replaced

    def _build(
        self,
        groups: list[dict[str, Any]],
        state: dict[Tensor, Any],
        arrivals: list[tuple[Tensor, int]],
        attach: bool,
        replaced: Sequence[Bucket],
        offloaders: dict[torch.device, Offloader],
        absent: list[Tensor],
    ) -> list[_Made]:
        """Buckets for new parameters, with the state that these have; nothing that exists is changed."""
        if not arrivals:
            return []
        for device in {p.device for p, _ in arrivals}:
            if capturing(device):
                raise RuntimeError(NEW_STATE)
        names = names_of(groups)
        may = (p for p, _ in arrivals if may_step(p))
        check_arrivals(may, lambda: names, self._backend, self._storage, self.offload)
        kinds: dict[Hashable, list[tuple[Tensor, int]]] = {}
        layer_of = layers([p for p, _ in arrivals])
        for k, (p, index) in enumerate(arrivals):
            kinds.setdefault((self._kind(p), layer_of.get(k, 0)), []).append((p, index))
        if self._flatten:
            check_flatten(names, [p for p, _ in arrivals])
        for p, _ in arrivals:
            if has_state(state.get(p)):
                check_entry("optimizer.state", names[p], p, state[p])
                warn_of_shared(state[p], names[p])
        counts = {p: (bucket, k) for bucket in replaced for k, p in enumerate(bucket.params)}
        origins = self._origins(groups, absent) if self._storage.uses_random_bits else {}
        made = []
        for members in kinds.values():
            params = [p for p, _ in members]
            drawn = [rng_offset_of(p, origins[p]) for p in params] if self._storage.uses_random_bits else None
            bucket = Bucket(params, [i for _, i in members], self.offload, self._storage, drawn, self._edits)
            op = self._operators(bucket.device, offloaders)
            if bucket.is_fake:
                op = op._replace(scalars=faked(op).scalars) if self.offload else faked(op)
            flat = FlatBuffers(bucket, [names[p] for p in params], attach) if self._flatten else None
            for segment, p in enumerate(params):
                if has_state(state.get(p)):
                    was = counts.get(p)
                    count = None if was is None else was[0].counts.exact(was[1], state[p]["step"])
                    bucket.adopt(segment, state[p], count)
            if any(groups[index]["capturable"] for index in bucket.groups):
                bucket.count_on_device()
            made.append(_Made(bucket, op if suits(bucket, op) else op._replace(has_pointer_path=False), flat))
        return made

    def _operators(self, device: torch.device, offloaders: dict[torch.device, Offloader]) -> Operators:
        """What steps the parameters of a device; all offloaded buckets of a device share its staging memory."""
        if not self.offload:
            return OPERATORS[backend_for(device.type, self._backend)]
        if device not in offloaders:
            offloaders[device] = Offloader(device, self._backend)
        return offloaders[device].operators

    def _show(self, bucket: Bucket, segment: int, state: dict[Tensor, Any]) -> None:
        """Lets the optimizer's state show a segment, beside what else its owner keeps there."""
        p = bucket.params[segment]
        others = {name: value for name, value in state.get(p, {}).items() if name not in NAMES}
        state[p] = bucket.show(segment, others)

    def count_on_device(self) -> None:
        """From now on a device counts the steps, where it alone may know whether one is taken."""
        for bucket in self.buckets:
            bucket.count_on_device()

    def names(self) -> dict[Tensor, str]:
        """What errors call each parameter."""
        return names_of(self._groups)

    # A step.

    def collect(self, bucket: Bucket, sure: bool = True, pointers: bool = True) -> Launch | None:
        """What a step launches over a bucket, or None where no parameter of it has a gradient.

        Unless ``sure`` a launch by addresses may be one that cannot go that way, which its step finds out itself.
        Without ``pointers`` there is none.
        """
        captured = bucket.may_capture and capturing(bucket.device)
        if pointers and bucket.all_present and not (captured or self._flatten):
            whole = bucket.whole_plan()
            found = None if whole is None else addresses(bucket, whole, self.ops[bucket])
            if whole is not None and found is not None and (not sure or found.plain()):
                return Launch(bucket, whole, whole.params, None, whole.segments, whole.row_of, whole.origins, found)
        plan_of = bucket.captured_plan if captured else bucket.plan
        if captured:
            if self.offload:
                raise RuntimeError("offload = True: a CUDA graph cannot capture step(), which the host computes")
            check_capture([bucket], self._groups)
        if not bucket.all_present and max(bucket.groups) < 0:
            return None
        if self._flatten:
            flat = self._flats[bucket]
            missing = flat.collect()
            plan = plan_of(missing if bucket.all_present else sorted({*missing, *bucket.absent}))
            if not plan.present:
                return None
            runs = flat.runs(plan)
            ops = self.ops[bucket]
            by_pointers = pointers and ops.has_pointer_path and can_bypass_dispatcher()
            by_pointers = by_pointers and not (captured and ops.pointer_step is not None)
            return Launch(bucket, plan, *runs, flat.run_origins, (by_pointers and plan.addresses) or None)
        grads, missing = gradients(bucket.params)
        if not bucket.all_present:
            grads, missing = without_absent(bucket, grads, missing)
        plan = plan_of(missing)
        if not plan.present:
            return None
        return by_lists(bucket, plan, grads, self.names)

    def global_norm(self, group: Any, made_with: Given) -> GlobalNorm | None:
        """How the gradients' norm is found where other ranks hold a part of them; None where none does.

        Args:
            group: the optimizer's ``grad_norm_group``.
            made_with: what the optimizer was made with.
        """
        if self._norm is None or self._norm.given is not group:
            self._norm = GlobalNorm(self.names(), group, made_with)
        return self._norm if self._norm.group is not None else None

    def stepped(self, launch: Launch) -> None:
        """Counts a step for the segments of a launch, and shows those that have taken their first."""
        if launch.addresses is None or launch.bucket.counts.on_device:  # otherwise the call that made it has counted it
            launch.bucket.count_step(launch.plan)
        if launch.plan.first:
            self.show_first(launch.bucket, launch.plan)

    def show_first(self, bucket: Bucket, plan: Plan) -> None:
        """Shows the state of segments that had none yet."""
        if plan.first:
            for segment in plan.present:
                if bucket.entries[segment] is None:
                    self._show(bucket, segment, self._state)
            bucket.note_shown()
            self._snapshot = Snapshot(self._groups, self._state)
            plan.first = False

    def zero_grads(self, set_to_none: bool) -> None:
        """Under ``flatten``: one memset a bucket, and torch's ways for parameters that have no bucket yet."""
        for flat in self._flats.values():
            flat.zero_grads()
        for p, _ in self._waiting_params():
            if p.grad is not None:
                p.grad = None if set_to_none else torch.zeros_like(p.grad)
