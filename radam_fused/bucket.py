"""The buckets of the flat index space, and what a step launches over one.

Parameters of one device and dtype form a *bucket*, whatever their groups. In it each parameter is a *segment*; the
moments of all segments share one flat buffer each, and ``state[p]["exp_avg"]`` is a view of it with the parameter's own
strides. What stays from step to step is built once, as a `Plan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from . import memory
from .forms import PLAIN, Storage, second_dtype
from .host import count_steps, upload
from .layout import ALIGNMENT, as_real, fingerprint, moment_strides, segment_starts, whole_numel
from .precision import (
    CODES,
    MOMENTS,
    RATIO,
    decoded,
    encode,
    encode_ratio,
    keep,
    local_entry,
    master_name,
    master_value,
    names_of,
    ratio_of,
)
from .rows import RowTable
from .sharded import is_sharded, wrapped

if TYPE_CHECKING:
    from .addresses import Addresses


@dataclass
class Plan:
    """What one step launches over a bucket, for as long as the same parameters get gradients."""

    missing: list[int]
    """Segments without a gradient; they and their step counts stay."""
    present: list[int]
    params: list[Tensor]
    segments: Tensor
    """int64 (n, 2), on the CPU: the start of each present segment in the flat buffers, and its `fingerprint`."""
    row_of: Tensor
    """int64, on the CPU: the row of each present segment."""
    rows: list[tuple[int, int]]
    """For each row its parameter group and how many steps its segments have taken, while the host counts them."""
    leaders: list[int]
    """For each row one of its segments."""
    row_table: RowTable
    """Where the host writes the rows of a step."""
    first: bool = True
    """Whether this plan has not been launched yet."""
    tables: tuple[Tensor, Tensor] | None = None
    """What the rows operator takes of this plan, where a device counts: see `Bucket.tables`."""
    origins: Tensor | None = None
    """int64, on the CPU: where the random numbers of each present segment begin; None where none are drawn."""
    addresses: Addresses | Literal[False] | None = None
    """See `radam_fused.addresses`; False where there is not that way, None where nobody has asked yet."""


class Bucket:
    """The segments of one device and dtype.

    Complex parameters are stepped as the real numbers they consist of (`torch.view_as_real`), as torch.optim does, and
    DTensors as their local tensors (sharded.py).

    Attributes:
        params: the parameters, in the order of their segments.
        groups: for each, the index of its parameter group.
        starts: for each, where its segment starts in the flat buffers, in elements.
        shapes, strides: the parameters' as of when their moments were laid out; moment_strides: the moments'.
        is_complex, is_sharded: whether the parameters are complex; whether they are DTensors.
        is_inference: whether one was made in `torch.inference_mode`.
        device, dtype: the parameters' device, and the dtype of their real numbers.
        state_device: where the moments are: with the parameters, or under `offload` on the CPU, pinned for a GPU.
        exp_avg, exp_avg_sq: flat moments, in the dtype that `storage` asks for (`radam_fused.forms`).
        scales: float32 (2, length / 256) of int8 moments; None for others.
        residue: what is kept of master weights beside the parameters, flat; None where nothing is.
        stochastic: whether parameters are rounded so.
        steps: how many steps each parameter has taken, float32: on the CPU as in torch.optim, or with the moments once
            `count_on_device` was called.
    """

    def __init__(
        self,
        params: list[Tensor],
        groups: list[int],
        offload: bool = False,
        storage: Storage = PLAIN,
        origins: list[int] | None = None,
    ) -> None:
        first = params[0]
        self.params = params
        self.groups = groups
        self.is_complex = first.is_complex()
        self.is_sharded = is_sharded(first)
        tensors = [as_real(p) for p in params]
        self.shapes = [tensor.shape for tensor in tensors]
        self.strides = [tuple(tensor.stride()) for tensor in tensors]
        self.moment_strides = [moment_strides(tensor) for tensor in tensors]
        self.is_inference = any(tensor.is_inference() for tensor in tensors)
        self.device, self.dtype = tensors[0].device, tensors[0].dtype
        moments = storage.moments(self.dtype, whole_numel(first))
        lengths = [tensor.numel() for tensor in tensors]
        self.starts, self.length = segment_starts(lengths, coded=moments == torch.int8)
        self._origins = self.starts if origins is None else origins
        self.state_device = torch.device("cpu") if offload else self.device
        pinned = offload and self.device.type == "cuda"

        def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
            return memory.zeros(shape, dtype, self.state_device, pinned)

        self.exp_avg = zeros(moments, self.length)
        self.exp_avg_sq = zeros(second_dtype(moments), self.length)
        self.scales = zeros(torch.float32, 2, self.length // ALIGNMENT) if moments == torch.int8 else None
        residue = storage.residue(self.dtype)
        self.residue = None if residue is None else zeros(residue, self.length)
        self.stochastic = storage.stochastic and self.dtype.itemsize == 2
        for index in range(len(params) if self.residue is not None else 0):
            self._keep(index, None)
        self.steps = torch.zeros(len(params), dtype=torch.float32, device="cpu")
        self._histories: list[int] | None = None
        self._plan: Plan | None = None
        self._steps_version = -1

    def view(self, buffer: Tensor, index: int) -> Tensor:
        """A segment of a flat buffer of this bucket, in its parameter's shape."""
        return buffer.as_strided(self.shapes[index], self.moment_strides[index], self.starts[index])

    def state(self, index: int) -> dict[str, Tensor]:
        """What ``optimizer.state`` holds for a parameter, under torch.optim.RAdam's names: views of the buffers."""
        moments = self._moments(index)
        if self.is_complex and self.exp_avg.dtype.itemsize >= 4:
            moments = {name: torch.view_as_complex(moment) for name, moment in moments.items()}
        kept = {} if self.residue is None else {master_name(self.residue.dtype): self.view(self.residue, index)}
        values = {**moments, **kept}
        if self.is_sharded:  # the scales are of this rank's blocks: state_dict() spreads them over elements
            param = self.params[index]
            values = {n: value if n in CODES[2:] else wrapped(param, value) for n, value in values.items()}
        return {"step": self.steps[index], **values}

    def _moments(self, index: int) -> dict[str, Tensor]:
        """Views of a segment's moments, by their names in the state, of real numbers."""
        views = [self.view(self.exp_avg, index), self.view(self.exp_avg_sq, index)]
        if self.scales is not None:
            first = self.starts[index] // ALIGNMENT
            views += self.scales[:, first : first - (-self.shapes[index].numel() // ALIGNMENT)]
        return dict(zip(MOMENTS[self.exp_avg.dtype], views, strict=True))

    def adopt(self, index: int, state: Mapping[str, Any]) -> None:
        """Copies a parameter's state, of the same shape and in whatever form, into this bucket."""
        self.steps[index] = float(state["step"])
        self._adopt_values(index, state)

    def _adopt_values(self, index: int, state: Mapping[str, Any]) -> None:
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
        elif self.scales is not None and names_of(state) in (CODES, RATIO):
            encode_ratio(views, *ratio_of(state))
        else:
            encode(views, *map(as_real, decoded(state)))
        if self.residue is not None:
            name = master_name(self.residue.dtype)
            if name in state and (state[name].dtype == self.residue.dtype or name == "master_low"):
                self.view(self.residue, index).copy_(state[name])
            else:
                self._keep(index, state)

    def _keep(self, index: int, state: Mapping[str, Any] | None) -> None:
        """Makes what is kept beside a parameter, from another form of it or from nothing."""
        assert self.residue is not None
        param = as_real(self.params[index]).detach().to(self.state_device)
        keep(self.view(self.residue, index), param, None if state is None else master_value(state, param))

    def follow_strides(self) -> list[int]:
        """Moves moments along with parameters whose strides have changed; returns which segments that were.

        A model that goes channels_last after some steps, say: every element keeps its moments.
        """
        tensors = [as_real(p) for p in self.params]
        moved = [i for i, tensor in enumerate(tensors) if tuple(tensor.stride()) != self.strides[i]]
        for index in moved:
            old = {name: value.clone() for name, value in self.state(index).items()}
            self.strides[index] = tuple(tensors[index].stride())
            self.moment_strides[index] = moment_strides(tensors[index])
            self._adopt_values(index, old)
        if moved:
            self._plan = None
        return moved

    @property
    def draws(self) -> bool:
        """Whether a step draws random numbers."""
        return self.stochastic or self.exp_avg.dtype.itemsize < 4

    def origin(self, index: int) -> int:
        """Where the random numbers of a segment begin."""
        return self._origins[index]

    @property
    def counted_on_device(self) -> bool:
        """Whether a rows operator counts the steps."""
        return self._histories is not None

    def count_on_device(self) -> None:
        """From now on a rows operator counts the steps, where alone it may be known whether one is taken.

        The host then no longer knows the counts, but still which segments have the same.
        """
        if self._histories is None:
            self._histories = [int(count) for count in self.steps.tolist()]
            self._part(set(self._plan.missing) if self._plan is not None else set())  # a step of it may be under way
            self.steps = upload(self.steps, self.state_device)
            self._steps_version = self.steps._version
            self._plan = None

    def plan(self, missing: list[int]) -> Plan:
        """The plan of a step in which these segments have no gradient: the last one, where nothing has changed.

        The views in ``optimizer.state`` share the version counter of ``steps``, so a step count that somebody else has
        written shows there, at no cost a parameter.
        """
        if self._plan is None or self._plan.missing != missing or self.steps._version != self._steps_version:
            self._plan = self._build_plan(missing)
            self._steps_version = self.steps._version
        return self._plan

    def whole_plan(self) -> Plan | None:
        """The last step's plan, if all segments were in it and no count was written since."""
        plan = self._plan
        return plan if plan and not plan.missing and self.steps._version == self._steps_version else None

    def _build_plan(self, missing: list[int]) -> Plan:
        absent = set(missing)
        present = [i for i in range(len(self.params)) if i not in absent]
        taken = self._taken(absent)
        rows: dict[tuple[int, int], int] = {}
        row_of = [rows.setdefault((self.groups[i], taken[i]), len(rows)) for i in present]
        leaders: dict[int, int] = {}
        for i, row in zip(present, row_of, strict=True):
            leaders.setdefault(row, i)
        return Plan(
            missing=missing,
            present=present,
            params=[self.params[i] for i in present],
            segments=torch.tensor(
                [(self.starts[i], fingerprint(self.shapes[i], self.strides[i])) for i in present],
                dtype=torch.int64,
                device="cpu",
            ).reshape(-1, 2),
            row_of=torch.tensor(row_of, dtype=torch.int64, device="cpu"),
            rows=list(rows),
            leaders=list(leaders.values()),
            row_table=RowTable(len(rows)),
            origins=torch.tensor([self._origins[i] for i in present], dtype=torch.int64, device="cpu")
            if self.draws
            else None,
        )

    def _taken(self, absent: set[int]) -> list[int]:
        """A number for each segment, the same for two where both have taken the same number of steps.

        It is that number while the host counts. Where a device does, segments start with the count that the host last
        knew, and part when a step takes one of them and not the other; reading the counts would be to wait.
        """
        if self._histories is None or self.steps._version != self._steps_version:
            counts = [int(count) for count in self.steps.tolist()]
            if self._histories is None:
                return counts
            self._histories = counts
        return self._part(absent)

    def _part(self, absent: set[int]) -> list[int]:
        """Histories after a step that leaves these segments out."""
        assert self._histories is not None
        parted: dict[tuple[int, bool], int] = {}
        self._histories = [
            parted.setdefault((history, i in absent), len(parted)) for i, history in enumerate(self._histories)
        ]
        return self._histories

    def tables(self, plan: Plan) -> tuple[Tensor, Tensor]:
        """``pairs`` and ``counted`` of the rows operator (`radam_fused.ops`), with the moments."""
        if plan.tables is None:
            pairs = [(group, leader) for (group, _), leader in zip(plan.rows, plan.leaders, strict=True)]
            counted = torch.zeros(len(self.params), dtype=torch.float32, device="cpu")
            counted[plan.present] = 1.0
            device = self.state_device
            both = torch.tensor(pairs, dtype=torch.int64, device="cpu"), counted
            plan.tables = upload(both[0], device), upload(both[1], device)
        return plan.tables

    def count_step(self, plan: Plan, unwatched: bool = False) -> None:
        """Counts one step for every segment of the plan, and moves the plan on to the next.

        Nobody looks at operators where it is ``unwatched`` (`radam_fused.addresses.unwatched`): then none is needed.
        """
        if self._histories is None:
            if plan.missing:
                self.steps[plan.present] += 1.0
            elif unwatched:
                count_steps(self.steps)
            else:
                self.steps += 1.0
            plan.rows = [(group, taken + 1) for group, taken in plan.rows]
        self._steps_version = self.steps._version
