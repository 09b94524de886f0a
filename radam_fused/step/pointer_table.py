"""The pointer path: a step over plain tensors, given as a table of pointers (csrc/python/pointer_table.cpp).

It is faster for many small tensors: torch's dispatcher takes longer to pass an operator's tensor lists than the step
takes to compute. It needs tensors of torch's own types, gradients with the strides of their parameters, and that no
dispatch mode or profiler is active. Every other step goes through the dispatcher, with the same bits, and with the
errors that name a tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch._C import _get_function_stack_at, _len_torch_dispatch_stack, _len_torch_function_stack
from torch._C._autograd import _profiler_enabled
from torch.utils._device import DeviceContext

from ..backends.native_norm import NativeNorm
from ..backends.operator_args import StepArgs
from ..backends.ops import Operators
from ..backends.triton.pointer_norm import PointerNorm
from ..backends.triton.pointer_step import PointerStep
from ..cpp_helpers import NATIVE_DEVICE, NATIVE_DTYPE, prepare_step, read_pairs, record_params, step_from_pointers

if TYPE_CHECKING:
    from ..state.bucket import Bucket
    from .plan import Plan

HOLD_GIL_UP_TO = 2**22
"""A step on the CPU holds the GIL where the bucket has at most this many elements. It then takes a few milliseconds, no
longer than Python's threads wait for each other anyway (`sys.getswitchinterval`). While it holds the GIL, no other
thread can free a gradient, so the step need not keep the gradients alive."""


class PointerTable:
    """The parameters and gradients of a launch whose segments are all dense arrays.

    Args:
        bucket: the bucket to step.
        params: the parameters; each step reads their gradients from ``.grad``.
        segments, scalar_index, rng_offsets: arguments of the step operator.
        fixed: whether the gradients never move, as those in flat buffers.

    Attributes:
        table: int64 (n, 5), on the CPU: a ``TensorPair`` (csrc/args/step_args.h) per parameter.
        known: whether all are of torch's own types. Where they are not, no other method may be called.
    """

    def __init__(
        self,
        bucket: Bucket,
        params: list[Tensor],
        segments: Tensor,
        scalar_index: Tensor,
        rng_offsets: Tensor | None,
        fixed: bool = False,
    ) -> None:
        self.table = torch.zeros(len(params), 5, dtype=torch.int64, device="cpu")
        self.table[:, 3] = torch.tensor([p.numel() for p in params], dtype=torch.int64, device="cpu")
        self.known = record_params(params, self.table.data_ptr())
        self._params = params  # kept alive: the table has addresses within these objects
        self._pairs = (
            self.table.data_ptr(),
            segments.data_ptr(),
            len(params),
            NATIVE_DTYPE[bucket.dtype],
            NATIVE_DEVICE[bucket.device.type],
            bucket.device.index or 0,
        )
        self._buffers = bucket.exp_avg, bucket.exp_avg_sq, segments, scalar_index
        self._formats = bucket.scales, bucket.master, bucket.stochastic, rng_offsets
        # On the CPU alone; a launch on a GPU always releases it.
        self._hold_gil = bucket.length <= HOLD_GIL_UP_TO
        self._fixed = fixed
        self._prepared: Any = None
        self._norm: NativeNorm | PointerNorm | None = None

    def fits(self) -> bool:
        """Whether all pairs are plain tensors of the shapes, dtypes and devices that the step needs."""
        return read_pairs(*self._pairs)

    def grad_norm(self, pointer_norm: type[NativeNorm | PointerNorm]) -> Tensor | None:
        """The partial sums of the gradients' squares; None where the operator has to find them, from their list.

        Args:
            pointer_norm: of the backend's `Operators`.
        """
        if self._norm is None:
            self._norm = pointer_norm(self._pairs, self._buffers[0].device, self._fixed)
        return self._norm.sums()

    def step(
        self,
        scalars: Tensor,
        zero_grads: bool,
        counts: tuple[int, int, int, int] | None,
        pointer_step: type[PointerStep] | None = None,
    ) -> bool:
        """The step, its count, and the version counters of what it writes; False, with nothing done, unless it `fits`.

        Args:
            scalars: float64 (k, 11): a `StepScalars` for each value of ``scalar_index``.
            zero_grads: whether to leave zeros in the gradients.
            counts: what `radam_fused.step.plan.counting` returned.
            pointer_step: of the backend's `Operators`.

        Returns:
            False, with nothing done, unless all pairs fit (see `fits`).
        """
        if pointer_step is not None:
            if self._prepared is None:
                args = StepArgs(self._params, self._params, *self._buffers, scalars, False, *self._formats)
                self._prepared = pointer_step(self._pairs, args)
            return self._prepared.step(scalars, zero_grads, counts)
        prepared = self.prepared() if self._prepared is None else self._prepared  # without a call, most often
        return step_from_pointers(prepared, scalars, zero_grads, counts)

    def prepared(self) -> Any:
        """What the steps of the plan have in common, for ``step_from_pointers`` and ``step_together``."""
        if self._prepared is None:
            scales, master, stochastic, rng_offsets = self._formats
            tensors = self.table, *self._buffers, scales, master, rng_offsets
            self._prepared = prepare_step(self._pairs, self._hold_gil, tensors, stochastic)
        return self._prepared


def may_use_pointers(bucket: Bucket, ops: Operators) -> bool:
    """Whether the steps of a bucket may take the pointer path, as far as that never changes."""
    return (
        ops.has_pointer_path and not (bucket.is_complex or bucket.is_sharded) and bucket.state_device == bucket.device
    )


def can_bypass_dispatcher() -> bool:
    """True if no dispatch mode, function mode or profiler that sees operators is active; asked in each step."""
    modes = _len_torch_function_stack()
    return not (_len_torch_dispatch_stack() or _profiler_enabled()) and (modes == 0 or _default_device_alone(modes))


def _default_device_alone(modes: int) -> bool:
    """True if all active TorchFunctionModes set a default device; such a mode changes factory functions alone."""
    return all(type(_get_function_stack_at(i)) is DeviceContext for i in range(modes))


def find_pointer_table(bucket: Bucket, plan: Plan, ops: Operators) -> PointerTable | None:
    """The pointer table of a plan; None where the step has to go through the dispatcher."""
    if plan.pointer_table is None:
        plan.pointer_table = _make_pointer_table(bucket, plan) if ops.has_pointer_path else False
    return plan.pointer_table if plan.pointer_table and can_bypass_dispatcher() else None


def find_norm_table(bucket: Bucket, plan: Plan) -> PointerTable | None:
    """Under ``flatten``, the same for the norm: every gradient by itself.

    A step takes neighbours in the buffers as one: so their squares would be added up in another order.
    """
    if plan.norm_table is None:
        plan.norm_table = _make_pointer_table(bucket, plan, fixed=True)
    return plan.norm_table or None


def _make_pointer_table(bucket: Bucket, plan: Plan, fixed: bool = False) -> PointerTable | Literal[False]:
    if any(bucket.moment_strides[i] != bucket.strides[i] for i in plan.present):
        return False
    found = PointerTable(bucket, plan.params, plan.segments, plan.scalar_index, plan.rng_offsets, fixed)
    return found if found.known else False
