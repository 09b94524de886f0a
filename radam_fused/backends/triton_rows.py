"""The ``triton`` backend's rows, made on the device: checks the tensors and starts the kernel, once."""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout import PARTIAL_SUMS
from ..rows import Hyper, Row
from .triton import WARPS, require

BLOCK = 32 * WARPS
"""Rows at a time: one a thread."""
COUNT_BLOCK = 8 * BLOCK
"""Step counts at a time."""


def rows(
    hyper: Tensor,
    pairs: Tensor,
    counted: Tensor,
    steps: Tensor,
    lr: Tensor | None,
    squares: Tensor | None,
    max_grad_norm: float,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``radam_fused::rows_triton``; arguments and results as `radam_fused.ops` says."""
    from .triton_rows_kernel import rows_kernel

    require("rows", hyper.device)
    _check(hyper, pairs, counted, steps, lr, squares, grad_scale, found_inf)
    made = hyper.new_empty(pairs.shape[0], len(Row._fields))
    norm = hyper.new_empty(())
    with torch.cuda.device_of(hyper):
        rows_kernel[(1,)](
            hyper.contiguous(),
            pairs.contiguous(),
            counted.contiguous(),
            steps,
            lr,
            0 if lr is None else lr.stride(0),
            None if squares is None else squares.contiguous(),
            max_grad_norm,
            grad_scale,
            found_inf,
            made,
            norm,
            pairs.shape[0],
            steps.numel(),
            0 if squares is None else squares.shape[0],
            BLOCK=BLOCK,
            COUNT_BLOCK=COUNT_BLOCK,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return made, norm


def _check(
    hyper: Tensor,
    pairs: Tensor,
    counted: Tensor,
    steps: Tensor,
    lr: Tensor | None,
    squares: Tensor | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    groups, segments = hyper.shape[0] if hyper.dim() else 0, steps.numel()
    _require("hyper", hyper, hyper.device, (torch.float64,), (groups, len(Hyper._fields)))
    _require("pairs", pairs, hyper.device, (torch.int64,), (pairs.shape[0] if pairs.dim() else 0, 2))
    _require("counted", counted, hyper.device, (torch.float32,), (segments,))
    _require("steps", steps, hyper.device, (torch.float32,), (segments,))
    if not steps.is_contiguous():
        raise ValueError(f"steps has strides {steps.stride()}: must be contiguous, as it is written")
    if lr is not None:
        _require("lr", lr, hyper.device, (torch.float32, torch.float64), (groups,))
    if squares is not None:
        _require(
            "squares", squares, hyper.device, (torch.float64,), (squares.shape[0] if squares.dim() else 0, PARTIAL_SUMS)
        )
    for name, tensor in (("grad_scale", grad_scale), ("found_inf", found_inf)):
        if tensor is not None:
            _require(name, tensor.reshape(-1), hyper.device, (torch.float32,), (1,))


def _require(
    name: str, tensor: Tensor, device: torch.device, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...]
) -> None:
    if tensor.device != device or tensor.dtype not in dtypes or tensor.shape != shape:
        raise ValueError(
            f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}: "
            f"must be one of {dtypes} of shape {shape} on {device}"
        )
