"""The flat index space: where each parameter's moments lie, and what a step launches over it.

Parameters of one device and dtype form a *bucket*, whatever their groups. In it each parameter is a *segment*; the
moments of all segments share one flat buffer each, and ``state[p]["exp_avg"]`` is a view of it with the parameter's own
strides. What stays from step to step is built once, as a `Plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .host import upload

ALIGNMENT = 256
"""Starts of large segments, in elements: a multiple of every vector access and of a quantisation block."""
SMALL = 4096
"""Segments shorter than this are never quantised, so vector accesses alone set their alignment."""
SMALL_ALIGNMENT = 64
NORM_TILE = 1024
"""Elements of a gradient whose squares are added side by side, one a lane."""
PARTIAL_SUMS = 1024
"""Into how many sums a gradient norm is split, whatever computes it (`radam_fused.ops`)."""


def segment_starts(lengths: Sequence[int]) -> tuple[list[int], int]:
    """Aligned starts of consecutive segments of the given lengths, and the length of the buffer that holds them."""
    starts = []
    end = 0
    for length in lengths:
        alignment = ALIGNMENT if length >= SMALL else SMALL_ALIGNMENT
        start = -(-end // alignment) * alignment
        starts.append(start)
        end = start + length
    return starts, -(-end // ALIGNMENT) * ALIGNMENT


def is_dense(tensor: Tensor) -> bool:
    """Whether the tensor fills one stretch of memory, each place once, in whatever order of dimensions."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def as_real(tensor: Tensor) -> Tensor:
    """A complex tensor as the real numbers it consists of, (..., 2); any other as it is."""
    return torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor


def moment_strides(param: Tensor) -> tuple[int, ...]:
    """Strides of a parameter's moments: its own where it is dense, row-major otherwise."""
    if is_dense(param):
        return tuple(param.stride())
    strides = []
    stride = 1
    for size in reversed(param.shape):
        strides.append(stride)
        stride *= max(size, 1)
    return tuple(reversed(strides))


def fingerprint(shape: Sequence[int], strides: Sequence[int]) -> int:
    """What tells two layouts apart, as an int64 (FNV-1a); the twin of ``fingerprint`` in csrc/segments.h."""
    value = 14695981039346656037
    for pair in zip(shape, strides, strict=True):
        for number in pair:
            value = (value ^ number) * 1099511628211 % 2**64
    return value - 2**64 if value >= 2**63 else value


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
    first: bool = True
    """Whether this plan has not been launched yet."""
    tables: tuple[Tensor, Tensor] | None = None
    """What the rows operator takes of this plan, where a device counts: see `Bucket.tables`."""
    described: Tensor | None = None
    """int64 (n, 4), on the CPU: room for `radam_fused.host.describe`."""


class Bucket:
    """The segments of one device and dtype.

    Complex parameters are stepped as the real numbers they consist of (`torch.view_as_real`), as torch.optim does.

    Attributes:
        params: the parameters, in the order of their segments.
        groups: for each, the index of its parameter group.
        starts: for each, where its segment starts in the flat buffers, in elements.
        shapes, strides: the parameters' as of when their moments were laid out; moment_strides: the moments'.
        device, dtype: the parameters' device, and the dtype of their real numbers.
        state_device: where the moments are: with the parameters, or under `offload` on the CPU, pinned for a GPU.
        exp_avg, exp_avg_sq: flat moments, float32 (float64 for float64 parameters).
        steps: how many steps each parameter has taken, float32: on the CPU as in torch.optim, or with the moments once
            `count_on_device` was called.
    """

    def __init__(self, params: list[Tensor], groups: list[int], offload: bool = False) -> None:
        first = params[0]
        self.params = params
        self.groups = groups
        self.is_complex = first.is_complex()
        tensors = [as_real(p) for p in params]
        self.shapes = [tensor.shape for tensor in tensors]
        self.strides = [tuple(tensor.stride()) for tensor in tensors]
        self.moment_strides = [moment_strides(tensor) for tensor in tensors]
        self.starts, self.length = segment_starts([tensor.numel() for tensor in tensors])
        self.device, self.dtype = first.device, tensors[0].dtype
        state_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.state_device = torch.device("cpu") if offload else first.device
        pinned = offload and first.device.type == "cuda"
        self.exp_avg, self.exp_avg_sq = (
            torch.zeros(self.length, dtype=state_dtype, device=self.state_device, pin_memory=pinned) for _ in range(2)
        )
        self.steps = torch.zeros(len(params), dtype=torch.float32)
        self._histories: list[int] | None = None
        self._plan: Plan | None = None
        self._steps_version = -1

    def view(self, buffer: Tensor, index: int) -> Tensor:
        """A segment of a flat buffer of this bucket, in its parameter's shape."""
        return buffer.as_strided(self.shapes[index], self.moment_strides[index], self.starts[index])

    def state(self, index: int) -> dict[str, Tensor]:
        """What ``optimizer.state`` holds for a parameter, under torch.optim.RAdam's names: views of the buffers."""
        moments = {name: self.view(getattr(self, name), index) for name in ("exp_avg", "exp_avg_sq")}
        if self.is_complex:
            moments = {name: torch.view_as_complex(moment) for name, moment in moments.items()}
        return {"step": self.steps[index], **moments}

    def adopt(self, index: int, state: dict[str, Tensor]) -> None:
        """Copies a parameter's state, of the same shape, into this bucket."""
        self.steps[index] = float(state["step"])
        self.view(self.exp_avg, index).copy_(as_real(state["exp_avg"]))
        self.view(self.exp_avg_sq, index).copy_(as_real(state["exp_avg_sq"]))

    def follow_strides(self) -> list[int]:
        """Moves moments along with parameters whose strides have changed; returns which segments that were.

        A model that goes channels_last after some steps, say: every element keeps its moments.
        """
        tensors = [as_real(p) for p in self.params]
        moved = [i for i, tensor in enumerate(tensors) if tuple(tensor.stride()) != self.strides[i]]
        for index in moved:
            old = [self.view(buffer, index).clone() for buffer in (self.exp_avg, self.exp_avg_sq)]
            self.strides[index] = tuple(tensors[index].stride())
            self.moment_strides[index] = moment_strides(tensors[index])
            for buffer, values in zip((self.exp_avg, self.exp_avg_sq), old, strict=True):
                self.view(buffer, index).copy_(values)
        if moved:
            self._plan = None
        return moved

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
                [(self.starts[i], fingerprint(self.shapes[i], self.strides[i])) for i in present], dtype=torch.int64
            ).reshape(-1, 2),
            row_of=torch.tensor(row_of, dtype=torch.int64),
            rows=list(rows),
            leaders=list(leaders.values()),
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
            counted = torch.zeros(len(self.params))
            counted[plan.present] = 1.0
            device = self.state_device
            plan.tables = upload(torch.tensor(pairs, dtype=torch.int64), device), upload(counted, device)
        return plan.tables

    def count_step(self, plan: Plan) -> None:
        """Counts one step for every segment of the plan, and moves the plan on to the next."""
        if self._histories is None:
            if plan.missing:
                self.steps[plan.present] += 1.0
            else:
                self.steps += 1.0
            plan.rows = [(group, taken + 1) for group, taken in plan.rows]
        self._steps_version = self.steps._version
