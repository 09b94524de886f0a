"""Where the parameters of an optimizer live.

Their buckets are made as gradients come, and made anew when somebody edits ``param_groups`` or ``state`` from outside.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .backends import backend_for
from .checks import check_disjoint, check_gradients
from .flat import FlatBuffers
from .host import describe, gradients, holds_exactly, identical
from .layout import Bucket, Plan, as_real
from .offload import Offloader
from .ops import NATIVE_DTYPE, OPERATORS, Operators
from .scalars import capturing
from .state import Journal, ParameterState

DLPACK_DEVICE = {"cpu": 1, "cuda": 2}
_serial = itertools.count()


def group_names(group: dict[str, Any], index: int) -> list[str]:
    """How errors name a group's parameters: by the names the caller gave, or by their place."""
    return [
        f"parameter {name!r}" if isinstance(name, str) else f"param_groups[{index}]['params'][{k}]"
        for k, name in enumerate(group.get("param_names") or [None] * len(group["params"]))
    ]


def _resolved(param: Tensor, grad: Tensor) -> Tensor:
    """The parameter's gradient, from now on a tensor that lies in memory as it is: not a lazy conjugate, minus or 0."""
    if grad.is_conj() or grad.is_neg() or grad._is_zerotensor():
        grad = grad.detach().clone().resolve_conj().resolve_neg()
        param.grad = grad
    return grad


class Launch(NamedTuple):
    """The arguments of one call of an operator, but for its rows."""

    bucket: Bucket
    plan: Plan
    params: list[Tensor]
    grads: list[Tensor]
    segments: Tensor
    row_of: Tensor
    described: Tensor | None = None
    """The same parameters and gradients as addresses, where they are plain: see `Placement._describe`."""


class Placement:
    """The buckets of an optimizer's parameters.

    Args:
        groups: the optimizer's ``param_groups``; all state in ``state`` is adopted.
        state: the optimizer's ``state``, which this fills as parameters take their first steps.
        backend: what `radam_fused.backends.check_name` returned.
        flatten: make parameters and gradients views of flat buffers, at once.
        attach: under ``flatten``, give parameters without a gradient a zero one.
        offload: keep moments on the CPU, and step there (offload.py).

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
    ) -> None:
        self.name = f"placement {next(_serial)}"
        self._groups = groups
        self._state = state
        self._backend = backend
        self._flatten = flatten
        self.offload = offload
        self._offloaders: dict[torch.device, Offloader] = {}
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
            or len(groups) != len(self._members)
            or not holds_exactly(state, self._entries)
            or not all(
                identical(group["params"], members) for group, members in zip(groups, self._members, strict=True)
            )
        )

    # Making buckets.

    def _stepping(self) -> list[tuple[Tensor, int]]:
        """Of the parameters without a bucket those that have a gradient or may get one."""
        return [(p, index) for p, index in self._unplaced if p.requires_grad or p.grad is not None]

    def place_arrivals(self) -> None:
        """Gives a bucket to every parameter that has its first gradient, and to those that may get one with it."""
        if any(p.grad is not None for p, _ in self._unplaced):
            self._place(self._stepping(), attach=False)

    def _kind(self, p: Tensor) -> Hashable:
        """The same for parameters that share a bucket."""
        return p.device, p.dtype

    def _place(self, arrivals: list[tuple[Tensor, int]], attach: bool) -> None:
        kinds: dict[Hashable, list[tuple[Tensor, int]]] = {}
        for p, index in arrivals:
            kinds.setdefault(self._kind(p), []).append((p, index))
        names = self.names() if self._flatten else {}
        if self._flatten:
            for p, _ in arrivals:
                if p.is_complex():
                    raise ValueError(f"flatten=True: {names[p]} is {p.dtype}: must be real, or flatten=False")
            check_disjoint(list(names), list(names.values()))
            for p, _ in arrivals:
                if p.grad is not None:
                    check_gradients([p], [p.grad], [names[p]])
        for members in kinds.values():
            bucket = Bucket([p for p, _ in members], [index for _, index in members], self.offload)
            op = self._operators(bucket.device)
            if self._flatten:
                self._flats[bucket] = FlatBuffers(bucket, [names[p] for p in bucket.params], attach)
            for segment, p in enumerate(bucket.params):
                if self._state.get(p):
                    bucket.adopt(segment, self._state[p])
            if any(self._groups[index]["capturable"] for index in bucket.groups):
                bucket.count_on_device()
            self._show_all(bucket)
            self.ops[bucket] = op
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
        self._state[p] = ParameterState({**self._state.get(p, {}), **bucket.state(segment)}, self._journal)

    def _show_all(self, bucket: Bucket) -> None:
        for segment, p in enumerate(bucket.params):
            if self._state.get(p):
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

    def collect(self, bucket: Bucket) -> Launch | None:
        """What a step launches over a bucket, or None where no parameter of it has a gradient."""
        if self.offload and capturing(bucket.device):
            raise RuntimeError("offload = True: a CUDA graph cannot capture step(), which the host computes")
        if self._flatten:
            flat = self._flats[bucket]
            flat.check_storage()
            plan = bucket.plan(flat.collect())
            return Launch(bucket, plan, *flat.runs(plan)) if plan.present else None
        whole = bucket.whole_plan()
        if whole is not None and (described := self._describe(bucket, whole)) is not None:
            return described
        grads, missing = gradients(bucket.params)
        plan = bucket.plan(missing)
        if not plan.present:
            return None
        params = plan.params
        if bucket.is_complex:
            names = self.names()
            check_gradients(params, grads, [names[p] for p in params])
            grads = [_resolved(p, grad) for p, grad in zip(params, grads, strict=True)]
            params, grads = list(map(as_real, params)), list(map(as_real, grads))
        return Launch(bucket, plan, params, grads, plan.segments, plan.row_of)

    def _describe(self, bucket: Bucket, plan: Plan) -> Launch | None:
        """The launch of a plan by addresses, the quicker way for many tensors; None where the lists are needed.

        They are where a tensor is not a plain one, and where somebody looks at operators: modes and profiles.
        """
        if (
            self.ops[bucket].described is None
            or bucket.is_complex
            or bucket.state_device != bucket.device
            or torch._C._len_torch_dispatch_stack()
            or torch._C._len_torch_function_stack()
            or torch._C._autograd._profiler_enabled()
        ):
            return None
        if plan.described is None:
            plan.described = torch.empty(len(plan.params), 4, dtype=torch.int64)
        device = DLPACK_DEVICE[bucket.device.type], bucket.device.index or 0
        addresses = plan.described.data_ptr(), plan.segments.data_ptr()
        grads = describe(plan.params, *addresses, NATIVE_DTYPE[bucket.dtype], *device)
        if grads is None:
            return None
        return Launch(bucket, plan, plan.params, grads, plan.segments, plan.row_of, plan.described)

    def squares(self, launches: Sequence[Launch]) -> Tensor:
        """float64 (k, 1024), on the device of the first launch: the squares of all gradients (`radam_fused.ops`)."""
        partial = []
        for launch in launches:
            by_dtype: dict[torch.dtype, list[Tensor]] = {}
            for grad in launch.grads:
                by_dtype.setdefault(grad.dtype, []).append(grad)
            try:
                partial += [self.ops[launch.bucket].squares(grads) for grads in by_dtype.values()]
            except Exception:
                self.check(launch)  # a clearer error, where a tensor is at fault
                raise
        if len(partial) == 1:
            return partial[0].unsqueeze(0)
        device = partial[0].device
        return torch.stack([sums.to(device, non_blocking=device.type != "cpu") for sums in partial])

    def check(self, launch: Launch) -> None:
        """Raises for the first tensor of a launch that does not fit, by name.

        Raises:
            RuntimeError, TypeError, ValueError: see `radam_fused.checks`; also a parameter that has another shape,
                device or precision than when its state was made.
        """
        bucket = launch.bucket
        names = self.names()
        for segment, p in enumerate(bucket.params):
            shape, is_double = as_real(p).shape, as_real(p).dtype == torch.float64
            was = f"its state was made for {tuple(bucket.shapes[segment])}, {bucket.dtype} on {bucket.device}"
            if shape != bucket.shapes[segment] or p.device != bucket.device:
                raise ValueError(f"{names[p]} is now {tuple(p.shape)} on {p.device}: {was}")
            if is_double != (bucket.dtype == torch.float64) or p.is_complex() != bucket.is_complex:
                raise TypeError(f"{names[p]} is now {p.dtype}: {was}")
        pairs = [(p, p.grad) for p in bucket.params if p.grad is not None]
        for p, _ in pairs:
            first = pairs[0][0]
            if p.dtype != first.dtype:
                raise TypeError(
                    f"{names[p]} is now {p.dtype} and {names[first]} {first.dtype}: their state lies "
                    "together; after a change of some dtypes, load_state_dict(state_dict()) to lay it out anew"
                )
        check_gradients([p for p, _ in pairs], [grad for _, grad in pairs], [names[p] for p, _ in pairs])

    def amend(self, bucket: Bucket) -> bool:
        """Makes good what a step may meet, seldom enough to be looked for only once it has failed; whether it did.

        Moments of parameters whose strides have changed are laid out anew, and lazy gradients written out.
        """
        moved = bucket.follow_strides()
        written = False
        for p in bucket.params:
            if (grad := p.grad) is not None:
                written |= _resolved(p, grad) is not grad
        for segment in moved:
            if self._state.get(bucket.params[segment]):
                self._show(bucket, segment)
        self._note()
        return bool(moved) or written

    def stepped(self, launch: Launch) -> None:
        """Counts a step for the segments of a launch, and shows those that have taken their first."""
        launch.bucket.count_step(launch.plan)
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
