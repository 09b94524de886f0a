"""A step over plain tensors by their addresses: csrc/python/pointer_table.cpp.

The quicker way for many tensors, as the lists of an operator cost more on their way through torch's dispatcher than all
else that a step does for a small one. It is for tensors of torch's own types, gradients that lie as their parameters
do, and a moment in which nobody looks at operators; everything else goes by lists, which give the same bits and the
clear errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch._C import _get_function_stack_at, _len_torch_dispatch_stack, _len_torch_function_stack
from torch._C._autograd import _profiler_enabled
from torch.utils._device import DeviceContext

from ..backends.operator_args import StepArgs
from ..backends.ops import Operators
from ..backends.triton.pointer_step import PointerStep
from ..cpp_helpers import NATIVE_DEVICE, NATIVE_DTYPE, read_pairs, record_params, step_from_pointers

if TYPE_CHECKING:
    from ..state.bucket import Bucket
    from .plan import Plan

HOLD_GIL_UP_TO = 2**22
"""Of a bucket up to so many elements a step takes a few milliseconds at most: no longer than Python's threads wait for
each other anyway (`sys.getswitchinterval`). Meanwhile nobody can take a gradient away, so that none is kept alive."""


class PointerTable:
    """The pairs of a launch whose segments are all dense arrays.

    Args:
        bucket: whose state is stepped.
        params: tensors whose gradients are looked for in ``.grad``.
        segments, scalar_index, rng_offsets: the operator's.

    Attributes:
        table: int64 (n, 5), on the CPU: a ``Described`` (csrc/args/step_args.h) for each.
        known: whether all are of torch's own types; nothing else may be asked where they are not.
    """

    def __init__(
        self, bucket: Bucket, params: list[Tensor], segments: Tensor, scalar_index: Tensor, rng_offsets: Tensor | None
    ) -> None:
        self.table = torch.zeros(len(params), 5, dtype=torch.int64, device="cpu")
        self.table[:, 3] = torch.tensor([p.numel() for p in params], dtype=torch.int64, device="cpu")
        self.known = record_params(params, self.table.data_ptr())
        self._params = params  # the table has addresses within these objects
        self._hold_gil = bucket.length <= HOLD_GIL_UP_TO  # on a GPU the GIL is always released
        self._pairs = (
            self.table.data_ptr(),
            segments.data_ptr(),
            len(params),
            NATIVE_DTYPE[bucket.dtype],
            NATIVE_DEVICE[bucket.device.type],
            bucket.device.index or 0,
        )
        self._before = self.table, bucket.exp_avg, bucket.exp_avg_sq, segments, scalar_index
        self._after = bucket.scales, bucket.master, bucket.stochastic, rng_offsets
        self._own: PointerStep | None = None

    def fits(self) -> bool:
        """Whether all pairs are plain tensors that fit."""
        return read_pairs(*self._pairs)

    def step(
        self,
        rows: Tensor,
        zero_grads: bool,
        counts: tuple[int, int, int, int] | None,
        pointer_step: type[PointerStep] | None = None,
    ) -> bool:
        """The step, its count, and the version counters of what it writes; False, with nothing done, unless it `fits`.

        Args:
            rows: the scalars.
            zero_grads: whether to leave zeros in the gradients.
            counts: of `radam_fused.step.plan.counting`.
            pointer_step: of the backend's `Operators`.
        """
        if pointer_step is not None:
            if self._own is None:
                self._own = pointer_step(
                    self._pairs, StepArgs(self._params, self._params, *self._before[1:], rows, False, *self._after)
                )
            return self._own.step(rows, zero_grads, counts)
        return step_from_pointers(self._pairs, self._hold_gil, (*self._before, rows, zero_grads, *self._after), counts)


def may_use_pointers(bucket: Bucket, ops: Operators) -> bool:
    """Whether the steps of a bucket may go by addresses, as far as that never changes."""
    return (
        ops.has_pointer_path and not (bucket.is_complex or bucket.is_sharded) and bucket.state_device == bucket.device
    )


def can_bypass_dispatcher() -> bool:
    """True if no dispatch mode, function mode or profiler that looks at operators is active: they come and go."""
    modes = _len_torch_function_stack()
    return not (_len_torch_dispatch_stack() or _profiler_enabled()) and (modes == 0 or _default_device_alone(modes))


def _default_device_alone(modes: int) -> bool:
    """True if so many active TorchFunctionModes are those of a default device, which look at factories alone."""
    return all(type(_get_function_stack_at(i)) is DeviceContext for i in range(modes))


def find_pointer_table(bucket: Bucket, plan: Plan, ops: Operators) -> PointerTable | None:
    """Those of a plan; None where a step has to go by lists."""
    if plan.pointer_table is None:
        plan.pointer_table = _make_pointer_table(bucket, plan) if ops.has_pointer_path else False
    return plan.pointer_table if plan.pointer_table and can_bypass_dispatcher() else None


def _make_pointer_table(bucket: Bucket, plan: Plan) -> PointerTable | Literal[False]:
    if any(bucket.moment_strides[i] != bucket.strides[i] for i in plan.present):
        return False
    found = PointerTable(bucket, plan.params, plan.segments, plan.scalar_index, plan.rng_offsets)
    return found if found.known else False
