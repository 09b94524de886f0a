"""Where the parameters of an optimizer live.

Their buckets are made as gradients come, and made anew when somebody edits ``param_groups`` or ``state`` from outside.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from .addresses import addresses, suits, unwatched
from .backends import backend_for
from .bucket import Bucket, Plan
from .checks import check_disjoint, check_gradients, may_step
from .flat import FlatBuffers
from .forms import PLAIN, Storage
from .global_norm import GlobalNorm
from .groups import check_arrivals, group_names
from .host import gradients, unchanged
from .launches import Launch, by_lists, materialized, resolved
from .layout import as_real, drawing_length, draws_from, segment_starts, whole_numel
from .offload import Offloader
from .ops import OPERATORS, Operators
from .precision import NAMES
from .scalars import capturing
from .sharded import is_sharded, refuse_flatten
from .state.tracked_dict import Journal, ParameterState

_serial = itertools.count()


class Placement:
    """The buckets of an optimizer's parameters.

    Args:
        groups: the optimizer's ``param_groups``; all state in ``state`` is adopted.
        state: the optimizer's ``state``, which this fills as parameters take their first steps.
        backend: what `radam_fused.backends.check_name` returned.
        flatten: make parameters and gradients views of flat buffers, at once.
        attach: under ``flatten``, give parameters without a gradient a zero one.
        offload: keep moments on the CPU, and step there (offload.py).
        storage: how the state is stored.

    Attributes:
        name: of this one alone, which a compiled step is guarded by.
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
        storage: Storage = PLAIN,
    ) -> None:
        self.name = f"placement {next(_serial)}"
        self._groups = groups
        self._state = state
        self._backend = backend
        self._flatten = flatten
        self.offload = offload
        self._storage = storage
        self._offloaders: dict[torch.device, Offloader] = {}
        self._norm: GlobalNorm | None = None
        self._journal = Journal()
        self.buckets: list[Bucket] = []
        self.ops: dict[Bucket, Operators] = {}
        self._flats: dict[Bucket, FlatBuffers] = {}
        self._unplaced = [(p, index) for index, group in enumerate(groups) for p in group["params"]]
        if flatten:
            self._place(self._stepping(), attach)
        else:
            self._place([(p, index) for p, index in self._unplaced if state.get(p)], attach=False)
        self._note()

    def add(self, index: int) -> None:
        """Takes in a group that has just been added; on an error this is as it was."""
        self._norm = None
        before = self._unplaced
        self._unplaced = before + [(p, index) for p in self._groups[index]["params"]]
        try:
            if self._flatten:
                self._place(self._stepping(), attach=True)
        except Exception:
            self._unplaced = before
            raise
        self._note()

    # Noticing what others have changed.

    def _note(self) -> None:
        """Remembers groups and state as they are now."""
        self._members = [list(group["params"]) for group in self._groups]
        self._entries = list(self._state.values())
        self._journal.changed = False

    @property
    def edited(self) -> bool:
        """Whether somebody has put another tensor into an entry of the state."""
        return self._journal.changed

    def outdated(self, groups: list[dict[str, Any]], state: dict[Tensor, Any]) -> bool:
        """Whether the optimizer's groups or state are no longer those that this has placed."""
        return (
            self.edited
            or groups is not self._groups
            or state is not self._state
            or not unchanged(groups, self._members, state, self._entries)
        )

    # Making buckets.

    def _stepping(self) -> list[tuple[Tensor, int]]:
        """Of the parameters without a bucket those that have a gradient or may get one."""
        return [(p, index) for p, index in self._unplaced if may_step(p)]

    def place_arrivals(self) -> None:
        """Gives a bucket to every parameter that has its first gradient, and to those that may get one with it."""
        if self._unplaced and any(p.grad is not None for p, _ in self._unplaced):
            self._place(self._stepping(), attach=False)
            self._note()

    def _kind(self, p: Tensor) -> Hashable:
        """The same for parameters that share a bucket."""
        return p.device, p.dtype, is_sharded(p), self._moments(p)

    def _moments(self, p: Tensor) -> torch.dtype:
        return self._storage.moments(as_real(p).dtype, whole_numel(p))

    def _origins(self) -> dict[Tensor, int]:
        """Where the random numbers of each whole parameter begin: by its place among all, however they are bucketed."""
        params = [p for group in self._groups for p in group["params"]]
        return dict(zip(params, segment_starts([drawing_length(p) for p in params])[0], strict=True))

    def _place(self, arrivals: list[tuple[Tensor, int]], attach: bool) -> None:
        stepping = (p for p, _ in arrivals if may_step(p))
        check_arrivals(stepping, self.names, self._backend, self._storage, self.offload)
        kinds: dict[Hashable, list[tuple[Tensor, int]]] = {}
        for p, index in arrivals:
            kinds.setdefault(self._kind(p), []).append((p, index))
        names = self.names() if self._flatten else {}
        if self._flatten:
            for p, _ in arrivals:
                if p.is_complex():
                    raise ValueError(f"flatten=True: {names[p]} is {p.dtype}: must be real, or flatten=False")
            refuse_flatten(names)
            check_disjoint(list(names), list(names.values()))
            for p, _ in arrivals:
                if p.grad is not None:
                    check_gradients([p], [p.grad], [names[p]])
        origins = self._origins() if arrivals and self._storage.draws else {}
        for members in kinds.values():
            params = [p for p, _ in members]
            indices = [index for _, index in members]
            drawn = [draws_from(p, origins[p]) for p in params] if self._storage.draws else None
            bucket = Bucket(params, indices, self.offload, self._storage, drawn)
            op = self._operators(bucket.device)
            if self._flatten:
                self._flats[bucket] = FlatBuffers(bucket, [names[p] for p in bucket.params], attach)
            for segment, p in enumerate(bucket.params):
                if self._state.get(p):
                    bucket.adopt(segment, self._state[p])
            if any(self._groups[index]["capturable"] for index in bucket.groups):
                bucket.count_on_device()
            self._show_all(bucket)
            self.ops[bucket] = op if suits(bucket, op) else op._replace(by_addresses=False)
            self.buckets.append(bucket)
        placed = {p for p, _ in arrivals}
        self._unplaced = [(p, index) for p, index in self._unplaced if p not in placed]

    def _operators(self, device: torch.device) -> Operators:
        """What steps the parameters of a device; all offloaded buckets of a device share its staging memory."""
        if not self.offload:
            return OPERATORS[backend_for(device.type, self._backend)]
        if device not in self._offloaders:
            self._offloaders[device] = Offloader(device, self._backend)
        return self._offloaders[device].operators

    def _show(self, bucket: Bucket, segment: int) -> None:
        """Lets the optimizer's state show a segment, beside what else its owner keeps there."""
        p = bucket.params[segment]
        others = {name: value for name, value in self._state.get(p, {}).items() if name not in NAMES}
        self._state[p] = ParameterState({**others, **bucket.state(segment)}, self._journal)

    def _show_all(self, bucket: Bucket) -> None:
        """Shows every segment that has state, and under ``flatten`` those that have a gradient.

        torch's distributed state_dict makes state for a fresh optimizer only where no parameter has a gradient.
        """
        for segment, p in enumerate(bucket.params):
            if self._state.get(p) or (self._flatten and p.grad is not None):
                self._show(bucket, segment)

    def count_on_device(self) -> None:
        """From now on a device counts the steps, where it alone may know whether one is taken."""
        for bucket in self.buckets:
            if not bucket.counted_on_device:
                bucket.count_on_device()
                self._show_all(bucket)
                self._note()

    def names(self) -> dict[Tensor, str]:
        """What errors call each parameter."""
        return {
            p: name
            for index, group in enumerate(self._groups)
            for p, name in zip(group["params"], group_names(group, index), strict=True)
        }

    # A step.

    def collect(self, bucket: Bucket, sure: bool = True) -> Launch | None:
        """What a step launches over a bucket, or None where no parameter of it has a gradient.

        Unless ``sure`` a launch by addresses may be one that cannot go that way, which its step finds out itself.
        """
        if self.offload and capturing(bucket.device):
            raise RuntimeError("offload = True: a CUDA graph cannot capture step(), which the host computes")
        if self._flatten:
            flat = self._flats[bucket]
            plan = bucket.plan(flat.collect())
            if not plan.present:
                return None
            runs = flat.runs(plan)
            by_addresses = flat.run_addresses if self.ops[bucket].by_addresses and unwatched() else None
            return Launch(bucket, plan, *runs, flat.run_origins, by_addresses)
        whole = bucket.whole_plan()
        found = None if whole is None else addresses(bucket, whole, self.ops[bucket])
        if whole is not None and found is not None and (not sure or found.plain()):
            return Launch(bucket, whole, whole.params, None, whole.segments, whole.row_of, whole.origins, found)
        grads, missing = gradients(bucket.params)
        plan = bucket.plan(missing)
        if not plan.present:
            return None
        return by_lists(bucket, plan, grads, self.names)

    def global_norm(self, group: Any) -> GlobalNorm | None:
        """How the gradients' norm is found where other ranks hold a part of them; None where none does.

        Args:
            group: the optimizer's ``grad_norm_group``.
        """
        if self._norm is None or self._norm.given is not group:
            self._norm = GlobalNorm(self.names(), group)
        return self._norm if self._norm.group is not None else None

    def amend(self, bucket: Bucket) -> bool:
        """Makes good what a step may meet, seldom enough to be looked for only once it has failed; whether it did.

        Moments of parameters whose strides have changed are laid out anew, lazy gradients written out, and
        copy-on-write tensors copied.
        """
        moved = bucket.follow_strides()
        written = False
        for p in bucket.params:
            written |= materialized(p)
            if (grad := p.grad) is not None:
                written |= materialized(grad) or resolved(p, grad) is not grad
        for segment in moved:
            if self._state.get(bucket.params[segment]):
                self._show(bucket, segment)
        self._note()
        return bool(moved) or written

    def stepped(self, launch: Launch) -> None:
        """Counts a step for the segments of a launch, and shows those that have taken their first."""
        launch.bucket.count_step(launch.plan, unwatched=launch.addresses is not None)
        self.show_first(launch.bucket, launch.plan)

    def show_first(self, bucket: Bucket, plan: Plan) -> None:
        """Shows the state of segments that had none yet."""
        if plan.first:
            for segment in plan.present:
                if not self._state.get(bucket.params[segment]):
                    self._show(bucket, segment)
            plan.first = False
            self._note()

    def zero_grads(self, set_to_none: bool) -> None:
        """Under ``flatten``: one memset a bucket, and torch's ways for parameters that have no bucket yet."""
        for flat in self._flats.values():
            flat.zero_grads()
        for p, _ in self._unplaced:
            if p.grad is not None:
                p.grad = None if set_to_none else torch.zeros_like(p.grad)
