"""Checks the arguments of the operators in Python (`radam_fused.backends.ops`) before anything is written.

The C++ operators check the same: csrc/args/step_args.cpp (step), csrc/args/grad_norm_args.cpp (grad_norm),
csrc/args/scalars_args.cpp (scalars).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..numerics.layout import PARTIAL_SUMS
from ..numerics.scalars import GroupScalars, StepScalars
from ..numerics.state_format import check_state_format
from ..numerics.tensor_checks import (
    HALF_OR_SINGLE,
    check_gradients,
    check_layouts,
    check_stored,
    is_stored,
    overlaps_itself,
)
from .operator_args import ScalarsArgs, StepArgs

_LARGEST = 2**63 - 1
_GRADIENTS = (*HALF_OR_SINGLE, torch.float64)


def check_tables(args: StepArgs) -> None:
    """Raises for tables of a step that do not have one readable entry per parameter.

    Raises:
        ValueError: another shape, dtype or device, or a freed storage.
    """
    count, exp_avg, scalars = len(args.params), args.exp_avg, args.scalars
    segments, scalar_index, rng_offsets = args.segments, args.scalar_index, args.rng_offsets
    wanted = {"segments": (segments, (count, 2)), "scalar_index": (scalar_index, (count,))}
    if rng_offsets is not None:
        wanted["rng_offsets"] = rng_offsets, (count,)
    for name, (table, shape) in wanted.items():
        if (
            table.shape != shape
            or table.dtype != torch.int64
            or table.device.type != "cpu"
            or not table.is_contiguous()
        ):
            raise ValueError(
                f"{name} is {table.dtype} of shape {tuple(table.shape)} on {table.device}: must be contiguous int64 of "
                f"shape {shape} on the CPU, one entry a segment"
            )
    columns = len(StepScalars._fields)
    if (
        scalars.dtype != torch.float64
        or scalars.dim() != 2
        or scalars.shape[1] != columns
        or not scalars.is_contiguous()
    ):
        raise ValueError(
            f"scalars is {scalars.dtype} of shape {tuple(scalars.shape)} and strides {scalars.stride()}: "
            f"must be contiguous float64 of shape (n, {columns})"
        )
    if scalars.device != exp_avg.device and scalars.device.type != "cpu":
        raise ValueError(f"scalars is on {scalars.device}: must be on the CPU or on {exp_avg.device}, as exp_avg is")
    check_stored(segments=segments, scalar_index=scalar_index, scalars=scalars, rng_offsets=rng_offsets)


def check_step(args: StepArgs, alignment: int = 1) -> None:
    """Raises for the first argument of a step that does not fit.

    Args:
        args: of the step.
        alignment: the number of elements of which starts must be multiples.

    Raises:
        RuntimeError, TypeError, ValueError: the message has the argument, its value and what is allowed.
    """
    params, grads, segments = args.params, args.grads, args.segments
    exp_avg, exp_avg_sq, scales, master = state = args.state
    if len(params) != len(grads):
        raise ValueError(f"grads has {len(grads)} tensors: must have {len(params)}, as params has")
    check_tables(args)
    _check_buffers(exp_avg, exp_avg_sq)
    for i, param in enumerate(params):
        if param.layout != torch.strided or param.device != exp_avg.device or param.dtype != params[0].dtype:
            raise ValueError(
                f"tensor {i} of the lists is {param.dtype} on {param.device} with layout {param.layout}: "
                f"must be {params[0].dtype} on {exp_avg.device} with layout torch.strided"
            )
        if param.numel() and overlaps_itself(param):
            raise ValueError(
                f"tensor {i} of the lists: the parameter is expanded (strides {tuple(param.stride())}): "
                "several of its elements share memory"
            )
    check_layouts(params, segments, exp_avg.dtype)
    check_gradients(params, grads)
    check_stored(
        **{f"parameter {i}": param for i, param in enumerate(params)},
        **{f"gradient {i}": grad for i, grad in enumerate(grads)},
    )
    check_stored(exp_avg=exp_avg, exp_avg_sq=exp_avg_sq, scales=scales, master=master)
    check_state_format(state, params, segments, args.stochastic, args.rng_offsets)
    numbers = zip(args.starts(), args.scalar_index.tolist(), args.offsets(), strict=True)
    for i, (param, (start, row, rng_offset)) in enumerate(zip(params, numbers, strict=True)):
        _check_segment(i, param.numel(), start, row, rng_offset, exp_avg.numel(), len(args.scalars), alignment)


def _check_buffers(exp_avg: Tensor, exp_avg_sq: Tensor) -> None:
    for name, buffer in (("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)):
        if buffer.shape != (exp_avg.numel(),) or buffer.device != exp_avg.device or not buffer.is_contiguous():
            raise ValueError(
                f"{name} is of shape {tuple(buffer.shape)} and strides {buffer.stride()} on {buffer.device}: exp_avg "
                f"and exp_avg_sq must be flat buffers of one size ({exp_avg.numel()}), dtype and device "
                f"({exp_avg.device})"
            )
    check_stored(exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
    spans = sorted((b.data_ptr(), b.data_ptr() + b.numel() * b.element_size()) for b in (exp_avg, exp_avg_sq))
    if spans[0][1] > spans[1][0]:
        raise ValueError("exp_avg and exp_avg_sq must not share memory")


def _check_segment(
    i: int, numel: int, start: int, row: int, rng_offset: int, capacity: int, rows: int, alignment: int
) -> None:
    if not 0 <= start <= capacity - numel or start % alignment:
        raise ValueError(
            f"tensor {i} of the lists: start {start} with {numel} elements out of the buffer of {capacity}, "
            f"or not a multiple of {alignment}"
        )
    if not 0 <= row < rows:
        raise ValueError(f"tensor {i} of the lists: scalar_index {row} out of range of {rows} rows of scalars")
    if not 0 <= rng_offset <= _LARGEST - numel:
        raise ValueError(
            f"tensor {i} of the lists: rng_offset {rng_offset} out of the range from 0 to {_LARGEST - numel}"
        )


def check_grad_norm(grads: Sequence[Tensor]) -> None:
    """Raises for the first gradient that does not fit the others of its list.

    Raises:
        RuntimeError, TypeError, ValueError: no gradient at all, or one of another layout, dtype or device, or freed.
    """
    if not grads:
        raise ValueError("grads must have at least one tensor")
    first = grads[0]
    if first.dtype not in _GRADIENTS:
        raise TypeError(f"gradient 0 is {first.dtype}: must be one of {_GRADIENTS}")
    for i, grad in enumerate(grads):
        if grad.layout != torch.strided:
            raise RuntimeError(f"gradient {i} has layout {grad.layout}: must be torch.strided")
        if grad.dtype != first.dtype or grad.device != first.device:
            raise ValueError(
                f"gradient {i} is {grad.dtype} on {grad.device}: must be {first.dtype} on {first.device}, as the first"
            )
        if not is_stored(grad):
            check_stored(**{f"gradient {i}": grad})


def check_scalars(args: ScalarsArgs) -> None:
    """Raises for the first argument of the scalars operator that does not fit.

    The contents of ``sources`` are checked only on the CPU: on a device the host would have to wait for it.

    Raises:
        ValueError: the message has the argument, its value and what is allowed.
    """
    group_scalars, sources, counted, steps, taken, lr, partial_sums, _, grad_scale, found_inf = args
    groups, segments = group_scalars.shape[0] if group_scalars.dim() else 0, steps.numel()
    _require(
        "group_scalars", group_scalars, group_scalars.device, (torch.float64,), (groups, len(GroupScalars._fields))
    )
    _require("sources", sources, group_scalars.device, (torch.int64,), (sources.shape[0] if sources.dim() else 0, 2))
    _require("steps", steps, group_scalars.device, (torch.float32,), (segments,))
    _require("taken", taken, group_scalars.device, (torch.float64,), (segments,))
    _require("counted", counted, group_scalars.device, (torch.float32,), (segments,))
    if lr is not None:
        _require("lr", lr, group_scalars.device, (torch.float32, torch.float64), (groups,), contiguous=False)
    if partial_sums is not None:
        lines = partial_sums.shape[0] if partial_sums.dim() else 0
        _require("partial_sums", partial_sums, group_scalars.device, (torch.float64,), (lines, PARTIAL_SUMS))
    for name, tensor in (("grad_scale", grad_scale), ("found_inf", found_inf)):
        if tensor is not None:
            one = tuple(tensor.shape) if tensor.numel() == 1 else (1,)
            _require(name, tensor, group_scalars.device, (torch.float32,), one, contiguous=False)
    if sources.device.type == "cpu":
        for row, (group, segment) in enumerate(sources.tolist()):
            if not (0 <= group < groups and 0 <= segment < segments):
                raise ValueError(
                    f"sources: row {row} names group {group} of {groups} and segment {segment} of {segments}"
                )


def _require(
    name: str,
    tensor: Tensor,
    device: torch.device,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[int, ...],
    contiguous: bool = True,
) -> None:
    if (
        tensor.layout != torch.strided
        or tensor.device != device
        or tensor.dtype not in dtypes
        or tensor.shape != shape
        or (contiguous and not tensor.is_contiguous())
    ):
        allowed = " or ".join(map(str, dtypes))
        raise ValueError(
            f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device} with layout {tensor.layout}: "
            f"must be {'contiguous ' if contiguous else ''}{allowed} of shape {shape} on {device}"
        )
    check_stored(**{name: tensor})
