"""The buckets of the flat index space: where the state of some parameters is stored.

Parameters of one device and dtype form a *bucket*, whatever their groups. In it each parameter is a *segment*; the
moments of all segments share one flat buffer each, and ``state[p]["exp_avg"]`` is a view of it with the parameter's own
strides.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..device import may_capture
from ..dtensor import is_sharded, wrapped
from ..numerics.layout import ALIGNMENT, as_real, moment_strides, segment_starts, whole_numel
from ..numerics.state_format import FULL_PRECISION, StateFormat
from ..tensor_kinds import is_fake
from . import memory
from .codec import (
    CODES,
    MOMENTS,
    WITH_ROOTS,
    decoded,
    encode,
    encode_with_root,
    first_and_root,
    local_entry,
    master_name,
    names_of,
    write_master,
)
from .step_counts import StepCounts
from .tracked_dict import TRACKED, DirtyFlag, ParameterState
from .transaction import Transaction
from .views import PublishedViews, own_view


class Bucket:
    """The segments of one device and dtype.

    Complex parameters are stepped as the real numbers they consist of (`torch.view_as_real`), as torch.optim does, and
    DTensors as their local tensors (dtensor.py).

    Attributes:
        params: the parameters, in the order of their segments.
        groups: for each, the index of its parameter group.
        places: for each, its place among all parameters of the groups: what the norm's order of additions follows.
        in_order: whether the parameters are in the order of their places.
        kind: the same for buckets whose parameters would share one, had they got their first gradients together.
        starts: for each, where its segment starts in the flat buffers, in elements.
        shapes, strides: the parameters' as of when their moments were laid out; moment_strides: the moments'.
        is_complex, is_sharded: whether the parameters are complex; whether they are DTensors.
        is_fake: whether the parameters are fake tensors (backends/fake_tensors.py).
        is_inference: whether one was made in `torch.inference_mode`.
        device, dtype: the parameters' device, and the dtype of their real numbers.
        may_capture: whether a CUDA graph may record steps of it.
        state_device: where the moments are: with the parameters, or under `offload` on the CPU, pinned for a GPU.
        exp_avg, exp_avg_sq: flat moments, in the dtype that `storage` asks for (`radam_fused.numerics.state_format`).
        scales: float32 (2, length / 256) of int8 moments; None for others.
        master: the master weights as one flat buffer, or what is stored of them in addition to the parameters; or None.
        stochastic: whether parameters are rounded so.
        counts: how many steps each parameter has taken.
        entries: which entry of ``optimizer.state`` shows each segment; None where none does yet.
        views: those views of the buffers that are shown.
        released: whether user code has changed an entry, so that the buffers are gone from here and the state has to be
            laid out again from what the entries hold.
        unconfirmed: takes back the state that was shown for a step which has not been taken yet; or None.
        last_plan: the plan of the last step (`radam_fused.step.plan.Plan`). It is stored here because it is valid only
            as long as this layout: whatever changes the layout sets it to None.
    """

    def __init__(
        self,
        params: list[Tensor],
        groups: list[int],
        offload: bool = False,
        storage: StateFormat = FULL_PRECISION,
        rng_offsets: list[int] | None = None,
        dirty: DirtyFlag | None = None,
    ) -> None:
        first = params[0]
        self.params = params
        self.groups = groups
        self.set_places(list(range(len(params))))
        self.all_present = True
        self.is_complex = first.is_complex()
        self.is_sharded = is_sharded(first)
        tensors = [as_real(p) for p in params]
        self.shapes = [tensor.shape for tensor in tensors]
        self.strides = [tuple(tensor.stride()) for tensor in tensors]
        self.moment_strides = [moment_strides(tensor) for tensor in tensors]
        self.is_fake = is_fake(tensors[0])
        self.is_inference = any(tensor.is_inference() for tensor in tensors)
        self.device, self.dtype = tensors[0].device, tensors[0].dtype
        self.may_capture = may_capture(self.device)
        moments = storage.moment_dtype(self.dtype, whole_numel(first))
        self.kind = self.device, self.dtype, self.is_complex, self.is_sharded, moments
        lengths = [tensor.numel() for tensor in tensors]
        self.starts, self.length = segment_starts(lengths, coded=moments == torch.int8)
        self._rng_offsets = self.starts if rng_offsets is None else rng_offsets
        self.state_device = torch.device("cpu") if offload else self.device
        pinned = offload and self.device.type == "cuda"

        specs = storage.buffers(self.dtype, whole_numel(first), self.length)

        def zeros(name: str) -> Tensor:
            return memory.zeros(specs[name].shape, specs[name].dtype, self.state_device, pinned)

        self.exp_avg = zeros("exp_avg")
        self.exp_avg_sq = zeros("exp_avg_sq")
        self.scales = zeros("scales") if "scales" in specs else None
        self.master = zeros("master") if "master" in specs else None
        self.stochastic = storage.stochastic and self.dtype.itemsize == 2
        for index in range(len(params) if self.master is not None else 0):
            self._write_master(index, None)
        self.counts = StepCounts(len(params))
        self.unconfirmed: Transaction | None = None
        self.last_plan: Any = None
        self.entries: list[weakref.ref[ParameterState] | None] = [None] * len(params)
        self.released = False
        self._dirty = dirty
        self.views = PublishedViews([])

    def view(self, buffer: Tensor, index: int) -> Tensor:
        """A segment of a flat buffer of this bucket, in its parameter's shape, with a storage of its own."""
        return own_view(buffer, self.shapes[index], self.moment_strides[index], self.starts[index])

    # What ``optimizer.state`` shows.

    def publish_state(self, index: int, others: dict[str, Any]) -> ParameterState:
        """Makes an entry of ``optimizer.state`` for a parameter, with whatever else user code keeps there."""
        entry = ParameterState({**others, **self.state(index)}, self)
        self.entries[index] = weakref.ref(entry)
        return entry

    def withdraw(self, index: int) -> None:
        """Forgets a parameter's entry, before it is taken out of ``optimizer.state``."""
        reference = self.entries[index]
        entry = None if reference is None else reference()
        if entry is not None:
            entry.disown()
        self.entries[index] = None

    def republish(self, index: int) -> None:
        """Puts new views into a parameter's entry, if it has one, after its buffers have moved."""
        reference = self.entries[index]
        entry = None if reference is None else reference()
        if entry is not None:
            dict.update(entry, self.state(index))  # which does not set the dirty flag

    def record_views(self) -> None:
        """Records the views in ``optimizer.state``, to notice where user code gives one of them other memory."""
        live = [entry for reference in self.entries if reference is not None and (entry := reference()) is not None]
        buffers = [self.exp_avg, self.exp_avg_sq, self.scales, self.master, self.counts.shown]
        views = PublishedViews([buffer for buffer in buffers if buffer is not None])
        views.record([value for entry in live for name, value in entry.items() if name in TRACKED])
        self.views = views  # at the end: an interrupt may come before

    def intact(self, thoroughly: bool = False) -> bool:
        """Whether the buffers are what ``optimizer.state`` shows, as far as a step looks; or as a whole."""
        return not self.released and self.views.intact(thoroughly)

    def release(self) -> None:
        """Drops the buffers; they live on as long as ``optimizer.state`` holds views of them."""
        self.released = True
        if self._dirty is not None:
            self._dirty.is_set = True
        self.last_plan = None
        self.views = PublishedViews([])
        self.exp_avg = self.exp_avg_sq = torch.empty(0, dtype=torch.float32, device="cpu")
        self.scales = self.master = None

    @property
    def absent(self) -> list[int]:
        """Segments whose parameters are in no group now, though they have state."""
        return [] if self.all_present else [i for i, group in enumerate(self.groups) if group < 0]

    def set_groups(self, groups: list[int]) -> None:
        """Notes the index of each parameter's group, -1 where it is in none now."""
        if groups != self.groups:
            self.groups = groups
            self.all_present = min(groups) >= 0
            self.last_plan = None

    def set_places(self, places: list[int]) -> None:
        """Notes the place of each parameter among all; those in no group come last."""
        self.places = places
        self.in_order = all(map(operator.lt, places, places[1:]))

    def state(self, index: int) -> dict[str, Tensor]:
        """What ``optimizer.state`` holds for a parameter, under torch.optim.RAdam's names: views of the buffers."""
        moments = self._moments(index)
        if self.is_complex and self.exp_avg.dtype.itemsize >= 4:
            moments = {name: torch.view_as_complex(moment) for name, moment in moments.items()}
        kept = {} if self.master is None else {master_name(self.master.dtype): self.view(self.master, index)}
        values = {**moments, **kept}
        if self.is_sharded:  # the scales are of this rank's blocks: state_dict() spreads them over elements
            param = self.params[index]
            values = {n: value if n in CODES[2:] else wrapped(param, value) for n, value in values.items()}
        return {"step": self.counts.view(index), **values}

    def _moments(self, index: int) -> dict[str, Tensor]:
        """Views of a segment's moments, by their names in the state, of real numbers."""
        views = [self.view(self.exp_avg, index), self.view(self.exp_avg_sq, index)]
        if self.scales is not None:
            first, count = self.starts[index] // ALIGNMENT, -(-self.shapes[index].numel() // ALIGNMENT)
            flat = self.scales.view(-1)
            views += [own_view(flat, (count,), (1,), row * self.scales.shape[1] + first) for row in range(2)]
        return dict(zip(MOMENTS[self.exp_avg.dtype], views, strict=True))

    def load_state(self, index: int, state: Mapping[str, Any], count: float | None = None) -> None:
        """Copies a parameter's state, of the same shape and in any state format, into this bucket.

        Args:
            index: its segment.
            state: an entry of ``optimizer.state``.
            count: the exact count of steps behind the float32 that the entry shows, where it is known.
        """
        if count is None:
            count = 0.0 if is_fake(state["step"]) else float(state["step"])
        self.counts.assign(index, count)
        self._load_values(index, state)

    def _load_values(self, index: int, state: Mapping[str, Any]) -> None:
        views = self._moments(index)
        if self.is_sharded:
            state = local_entry(state, self.params[index])
        # Codes belong to blocks of one order of the elements.
        same_order = CODES[0] not in state or state[CODES[0]].stride() == self.moment_strides[index]
        if (
            views.keys() <= state.keys()
            and same_order
            and all(view.dtype == as_real(state[name]).dtype for name, view in views.items())
            and all(views[name].shape == state[name].shape for name in CODES[2:] if name in views)
        ):
            for name, view in views.items():
                view.copy_(as_real(state[name]))
        elif self.scales is not None and names_of(state) in WITH_ROOTS:
            encode_with_root(views, *first_and_root(state))
        else:
            encode(views, *map(as_real, decoded(state)))
        if self.master is not None:
            self._write_master(index, state)

    def _write_master(self, index: int, state: Mapping[str, Any] | None) -> None:
        """Writes a parameter's master weights, from an entry in any state format or from the parameter alone."""
        assert self.master is not None
        write_master(self.view(self.master, index), as_real(self.params[index]), state)

    def follow_strides(self) -> list[int]:
        """Moves moments along with parameters whose strides have changed; returns which segments that were.

        A model that goes channels_last after some steps, say: every element keeps its moments.
        """
        tensors = [as_real(p) for p in self.params]
        moved = [i for i, tensor in enumerate(tensors) if tuple(tensor.stride()) != self.strides[i]]
        for index in moved:
            self.last_plan = None
            views = self.state(index)
            old = {name: value.clone() for name, value in views.items()}
            with Transaction() as transaction:
                for name in ("strides", "moment_strides"):
                    transaction.on_failure(getattr(self, name).__setitem__, index, getattr(self, name)[index])
                for name, view in views.items():
                    transaction.on_failure(view.copy_, old[name])
                self.strides[index] = tuple(tensors[index].stride())
                self.moment_strides[index] = moment_strides(tensors[index])
                self._load_values(index, old)
                self.republish(index)
        if moved:
            self.record_views()
        return moved

    @property
    def uses_random_bits(self) -> bool:
        """Whether a step rounds with random bits."""
        return self.stochastic or self.exp_avg.dtype.itemsize < 4

    def rng_offset(self, index: int) -> int:
        """Where the random numbers of a segment begin."""
        return self._rng_offsets[index]

    def count_on_device(self) -> None:
        """From now on a scalars operator counts the steps: only the device may know whether one is taken.

        The host then no longer knows the counts, but still knows which segments have equal ones.
        """
        if not self.counts.on_device:
            # A step of the last plan may be running.
            self.counts.move_to(self.state_device, set(self.last_plan.missing) if self.last_plan is not None else set())
            self.last_plan = None
            for index in range(len(self.params)):
                self.republish(index)
            self.record_views()
