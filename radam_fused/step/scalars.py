"""Where the scalars of a step are computed: on the host, or on the device where only it knows one of the inputs.

The device does under ``capturable=True`` (a CUDA graph is replayed without Python), for a learning rate that
is stored there, for `torch.amp.GradScaler`'s scale and infinities, and for the gradients' norm: the host would have to
wait for each. Both compute the same scalars, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..backends.operator_args import ScalarsArgs
from ..backends.ops import Operators
from ..device import NEW_COUNTS, NOT_CAPTURABLE, capturing, upload
from ..numerics.scalars import SKIP_STEP, StepScalars, group_scalars
from ..options import beside_rate, check_all
from ..state.bucket import Bucket
from .host_scalars import Groups, HostScalars, Scalars
from .plan import Plan, device_tables
from .pointer_table import can_bypass_dispatcher


class DeviceTables:
    """The parameter groups' hyperparameters on each device: uploaded when one changes, and kept while they do not.

    What a captured graph refers to is kept permanently, since torch does not report when a graph is destroyed.
    """

    def __init__(self) -> None:
        self._latest: dict[torch.device, tuple[list[Any], Tensor]] = {}
        self._captured: list[Any] = []

    def group_scalars(self, groups: Groups, device: torch.device) -> Tensor:
        """float64 (groups, 16): `radam_fused.numerics.scalars.GroupScalars` of each.

        Raises:
            TypeError, ValueError: a hyperparameter that is not allowed.
            RuntimeError: a learning rate that a graph's replays would not see changed.
        """
        values = [(_host_rate(group.get("lr"), device), *beside_rate(group)) for group in groups]
        known = self._latest.get(device)
        if known is None or known[0] != values:
            check_all(groups, False)
            lines = [group_scalars(group, line[0]) for group, line in zip(groups, values, strict=True)]
            known = values, upload(torch.tensor(lines, dtype=torch.float64, device="cpu"), device)
            if not capturing(device):  # what a capture uploads is filled by that graph's replays alone
                self._latest[device] = known
        return known[1]

    def keep(self, *tensors: Any) -> None:
        """Lets tensors live as long as the optimizer."""
        self._captured.extend(tensors)


def _moved(given: Tensor | None, device: torch.device) -> Tensor | None:
    """A number on the device; the operators of the host read it at once, so there a copy is waited for."""
    return None if given is None else given.to(device, non_blocking=device.type != "cpu")


def on_device(lr: Any) -> bool:
    """Whether the host would have to wait for a learning rate."""
    return isinstance(lr, Tensor) and lr.device.type != "cpu"


def _is_on(lr: Any, device: torch.device) -> bool:
    """Whether a learning rate is to be read on the device: a tensor there, which a graph's replays see changed."""
    return isinstance(lr, Tensor) and lr.device == device


def _host_rate(lr: Any, device: torch.device) -> float:
    if type(lr) is float:
        return lr
    if _is_on(lr, device):
        return 0.0
    if isinstance(lr, Tensor) and capturing(device):
        raise RuntimeError(
            f"lr is a tensor on {lr.device}, whose value a graph captured on {device} would keep permanently: "
            f"put it on {device}, or make it a float"
        )
    number = isinstance(lr, Real) and not isinstance(lr, bool)
    if number or (isinstance(lr, Tensor) and lr.numel() == 1):
        return float(lr)
    return math.nan  # `check_all` says what is wrong


def _rates(groups: Groups, device: torch.device) -> Tensor | None:
    """The groups' learning rates as one tensor of the device, or None where none is stored there."""
    for group in groups:
        if _is_on(group["lr"], device):
            break
    else:
        return None
    rates = [group["lr"] for group in groups]
    first = rates[0]
    if all(lr is first for lr in rates) and first.dtype in (torch.float32, torch.float64):
        return first.detach().reshape(1).expand(len(rates))
    return torch.stack(
        [
            lr.detach().reshape(()).double()
            if _is_on(lr, device)
            else torch.full((), float(lr), dtype=torch.float64, device=device)
            for lr in rates
        ]
    )


def check_capture(buckets: Iterable[Bucket], groups: Groups) -> None:
    """Raises where a CUDA graph that is being captured could not replay a step right; nothing is recorded yet.

    Raises:
        RuntimeError: with the reason.
    """
    for bucket in buckets:
        if not capturing(bucket.device):
            continue
        if not bucket.counts.on_device:
            by_device = any(group["capturable"] or on_device(group["lr"]) for group in groups)
            raise RuntimeError(NEW_COUNTS if by_device else NOT_CAPTURABLE)
        for group in groups:
            _host_rate(group["lr"], bucket.device)


class DeviceScalars:
    """Scalars computed by a scalars operator, on the device.

    Args:
        groups: the optimizer's ``param_groups``.
        tables: its `DeviceTables`.
        squares: float64 (k, 1024) of the grad_norm operator, over all gradients of the step, or None without clipping.
        max_grad_norm: to what their norm is clipped.
        grad_scale, found_inf: what `torch.amp.GradScaler` gives: one float32 each, or None.

    Attributes:
        grad_norm: the norm of the unscaled gradients, a float64 scalar on their device, once `compute` was called.
    """

    def __init__(
        self,
        groups: Groups,
        tables: DeviceTables,
        squares: Tensor | None,
        max_grad_norm: float,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        self._groups = groups
        self._tables = tables
        self._given = squares, grad_scale, found_inf
        self._max_grad_norm = max_grad_norm
        self.grad_norm: Tensor | None = None
        self._scalars: Tensor | None = None
        self._prepared: dict[int, tuple[Bucket, Plan, Tensor]] = {}

    def prepare(self, plans: list[tuple[Bucket, Plan, Operators]]) -> None:
        """See `Scalars`: the scalars of a later launch may find no memory, and are computed before the first step."""
        try:
            for bucket, plan, ops in plans:
                self._prepared[id(plan)] = bucket, plan, self._compute(bucket, plan, ops)
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """See `Scalars`."""
        while self._prepared:
            bucket, plan, self._scalars = self._prepared.popitem()[1]
            self.undo(bucket, plan)

    def prepared(self, plan: Plan) -> Tensor:
        """See `Scalars`."""
        return self._prepared[id(plan)][2]

    def confirm(self) -> None:
        """See `Scalars`."""
        self._prepared.clear()

    def compute(self, bucket: Bucket, plan: Plan, ops: Operators) -> Tensor:
        """See `Scalars`; counts the step."""
        prepared = self._prepared.pop(id(plan), None)
        self._scalars = self._compute(bucket, plan, ops) if prepared is None else prepared[2]
        return self._scalars

    def _compute(self, bucket: Bucket, plan: Plan, ops: Operators) -> Tensor:
        device = bucket.state_device
        hypers = self._tables.group_scalars(self._groups, device)
        pairs, counted = device_tables(bucket, plan)
        squares, grad_scale, found_inf = self._given
        for given in self._given:
            if given is not None and given.device != device:
                squares, grad_scale, found_inf = [_moved(one, device) for one in self._given]
                break
        if capturing(device):
            self._tables.keep(hypers, pairs, counted)
        args = ScalarsArgs(
            hypers,
            pairs,
            counted,
            bucket.counts.shown,
            bucket.counts.taken,
            _rates(self._groups, device),
            squares,
            self._max_grad_norm,
            grad_scale,
            found_inf,
        )
        found = _without_dispatcher(plan, ops, args)
        if found is None:
            with torch._C.DisableTorchFunctionSubclass():  # or a learning rate's type would become that of the scalars
                found = ops.scalars(*args)
        scalars, norm = found
        if self.grad_norm is None and squares is not None:
            self.grad_norm = norm
        return scalars

    def undo(self, bucket: Bucket, plan: Plan) -> None:
        """See `Scalars`."""
        assert self._scalars is not None
        taken = self._scalars[0, StepScalars._fields.index("update_rule")] != SKIP_STEP
        bucket.counts.take_back(device_tables(bucket, plan)[1] * taken)


def _without_dispatcher(plan: Plan, ops: Operators, args: ScalarsArgs) -> tuple[Tensor, Tensor] | None:
    """The same scalars by what the plan keeps for it; None where the operator has to compute them."""
    make = ops.pointer_scalars if ops.has_pointer_path else None
    if make is None or not make.suits(args) or not can_bypass_dispatcher() or capturing(args.taken.device):
        return None
    if plan.pointer_scalars is not None:
        found = plan.pointer_scalars.compute(args)
        if found is not None:
            return found
    plan.pointer_scalars = make(args)
    return plan.pointer_scalars.compute(args)


def choose_scalars(
    buckets: Sequence[Bucket],
    groups: list[dict[str, Any]],
    tables: DeviceTables,
    max_grad_norm: float | None,
    partial_sums: Tensor | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> Scalars:
    """The host computes the scalars of a step, unless only the device knows one of the inputs.

    ``partial_sums`` is what `radam_fused.step.grad_norm.partial_sums` has found for ``max_grad_norm``, over all ranks.

    Raises:
        ValueError: a group that lacks a hyperparameter.
    """
    known = max_grad_norm is None and grad_scale is None and found_inf is None
    for bucket in buckets:
        known = known and not bucket.counts.on_device
    try:
        for group in groups:
            lr = group["lr"]
            known = known and not (group["capturable"] or (type(lr) is not float and on_device(lr)))
    except KeyError:
        check_all(groups, False)  # says which group has none
        raise
    if known:
        return HostScalars(groups)
    on_host = [bucket for bucket in buckets if not bucket.counts.on_device]
    if on_host:
        check_capture(buckets, groups)
        for bucket in on_host:
            bucket.count_on_device()
    return DeviceScalars(groups, tables, partial_sums, max_grad_norm or 0.0, grad_scale, found_inf)
