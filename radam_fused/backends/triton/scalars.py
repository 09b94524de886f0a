"""The ``triton`` backend's rows, made on the device: checks the tensors and starts the kernel, once."""

from __future__ import annotations

import torch
from torch import Tensor

from ...numerics.scalars import Row
from ..operator_checks import check_rows
from .step import WARPS, require

BLOCK = 32 * WARPS
"""Rows at a time: one a thread."""
COUNT_BLOCK = 8 * BLOCK
"""Step counts at a time."""


def scalars(
    hyper: Tensor,
    pairs: Tensor,
    counted: Tensor,
    steps: Tensor,
    taken: Tensor,
    lr: Tensor | None,
    squares: Tensor | None,
    max_grad_norm: float,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``radam_fused::scalars_triton``; arguments and results as `radam_fused.backends.ops` says."""
    from .scalars_kernel import rows_kernel

    require("scalars", hyper.device)
    check_rows(hyper, pairs, counted, steps, taken, lr, squares, grad_scale, found_inf)
    made = hyper.new_empty(pairs.shape[0], len(Row._fields))
    norm = hyper.new_empty(())
    with torch.cuda.device_of(hyper):
        rows_kernel[(1,)](
            hyper,
            pairs,
            counted,
            steps,
            taken,
            lr,
            0 if lr is None else lr.stride(0),
            squares,
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
