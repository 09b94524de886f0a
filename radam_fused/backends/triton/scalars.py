"""The ``triton`` backend's rows, made on the device: checks the tensors and starts the kernel, once."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...numerics.scalars import StepScalars
from ..operator_args import ScalarsArgs
from ..operator_checks import check_scalars
from .availability import WARPS, require
from .compat import register_limit
from .launch import Arguments, launch, on_device_of

BLOCK = 32 * WARPS
"""Rows at a time: one a thread."""
COUNT_BLOCK = 8 * BLOCK
"""Step counts at a time."""
REGISTERS = 96
"""A thread's limit. Left alone, the assembler spills one of 72 for sm_120, and takes 76 with this."""
_CONSTANTS = {"BLOCK": BLOCK, "COUNT_BLOCK": COUNT_BLOCK, "num_warps": WARPS, "enable_fp_fusion": False}


def scalars(args: ScalarsArgs) -> tuple[Tensor, Tensor]:
    """``radam_fused::scalars_triton``; arguments and results as `radam_fused.backends.ops` says."""
    require("scalars", args.group_scalars.device)
    check_scalars(args)
    made = args.group_scalars.new_empty(args.sources.shape[0], len(StepScalars._fields))
    norm = args.group_scalars.new_empty(())
    kernel, constants = kernel_for()
    with on_device_of(args.group_scalars):
        launch(kernel, 1, kernel_arguments(args, made, norm), constants)
    return made, norm


def kernel_for() -> tuple[Any, dict[str, Any]]:
    """The kernel, and its constants and options."""
    from .scalars_kernel import scalars_kernel  # here, because Triton need not be installed

    return scalars_kernel, _CONSTANTS | register_limit(REGISTERS)


def kernel_arguments(args: ScalarsArgs, made: Tensor, norm: Tensor) -> Arguments:
    """The kernel's: those of the operator, what it writes, and how many there are of each."""
    group_scalars, sources, counted, steps, taken, lr, partial_sums, max_grad_norm, grad_scale, found_inf = args
    return (
        group_scalars,
        sources,
        counted,
        steps,
        taken,
        lr,
        0 if lr is None else lr.stride(0),
        partial_sums,
        max_grad_norm,
        grad_scale,
        found_inf,
        made,
        norm,
        sources.shape[0],
        steps.numel(),
        0 if partial_sums is None else partial_sums.shape[0],
    )
