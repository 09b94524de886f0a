"""The ``triton`` backend's partial sums of squares: describes the gradients and starts the kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...numerics.layout import NORM_TILE, PARTIAL_SUMS, is_dense
from ..operator_checks import check_grad_norm
from .availability import WARPS, require, stored
from .compat import architecture, register_limit
from .launch import Arguments, launch, on_device_of
from .tables import ALIGNED, NORM_COLUMNS, Table, facts, on_device

REGISTERS, REGISTERS_120 = 128, 136
"""A thread's: 16 warps a multiprocessor. Left alone, the assembler goes for 20, and spills for some dtypes. For sm_120
it spills float32's with 128."""
INTERPRETED_PROGRAMS = 1
"""One takes all sums that have tiles: the interpreter pays for each program, and 0.2 ms for each sum."""


def grad_norm(grads: list[Tensor]) -> Tensor:
    """``radam_fused::grad_norm_triton``; what it returns is said in `radam_fused.backends.ops`."""
    first = grads[0]
    require("grad_norm", first.device)
    lengths = tuple(map(Tensor.numel, grads))
    tiles = sum(-(-length // NORM_TILE) for length in lengths)
    with on_device_of(first):
        place = "squares", first.dtype, lengths
        (table,) = on_device(first.device, [Table(lambda: _table(grads, tiles), place, facts(grads))])
        skips = skips_empty(first.device)
        sums = (first.new_zeros if skips else first.new_empty)(1, PARTIAL_SUMS, dtype=torch.float64)
        count = PARTIAL_SUMS if first.is_cuda else INTERPRETED_PROGRAMS
        kernel, constants = kernel_for(first.dtype, skips)
        launch(kernel, count, arguments(table, sums, tiles), constants)
    return sums


def arguments(table: Tensor, sums: Tensor, tiles: int) -> Arguments:
    """The kernel's: the segments are behind the shares, the strides behind the segments."""
    return table[2 * PARTIAL_SUMS :], table, table, sums, tiles


def kernel_for(dtype: torch.dtype, skips: bool) -> tuple[Any, dict[str, Any]]:
    """The kernel, and its constants and options for gradients of this dtype."""
    from .grad_norm_kernel import grad_norm_kernel  # here, because Triton need not be installed

    constants = {
        "GRAD": stored(dtype),
        "SUMS": PARTIAL_SUMS,
        "SKIP_EMPTY": skips,
        "num_warps": WARPS,
        "enable_fp_fusion": False,
    }
    return grad_norm_kernel, constants | register_limit(registers(architecture()))


def registers(arch: int) -> int:
    """The limit of a thread's registers, by NVIDIA's architecture."""
    return REGISTERS_120 if arch >= 120 else REGISTERS


def skips_empty(device: torch.device) -> bool:
    """Whether zeros that are there beforehand save the sums that have no tiles: not on a GPU, for one launch more."""
    return device.type != "cuda"


def _table(grads: list[Tensor], tiles: int) -> Tensor:
    """Each sum's share of the segments, then the segments, then the strides of those with gaps.

    Made and checked again when an address, a shape or a dtype has changed (`triton_tables.facts`).
    """
    check_grad_norm(grads)
    filled = [grad for grad in grads if grad.numel()]
    counts = [-(-grad.numel() // NORM_TILE) for grad in filled]
    strides_from = 2 * PARTIAL_SUMS + len(NORM_COLUMNS) * len(filled)
    table: list[int] = []
    strides: list[int] = []
    firsts: list[int] = []
    tile = 0
    for grad, count in zip(filled, counts, strict=True):
        plain = is_dense(grad)
        full = grad.numel() // NORM_TILE if plain and grad.data_ptr() % ALIGNED == 0 else 0
        table += (grad.data_ptr(), grad.numel(), tile, count, full, -1 if plain else strides_from + len(strides))
        if not plain:
            strides.append(grad.dim())
            for size, stride in zip(reversed(grad.shape), reversed(grad.stride()), strict=True):
                strides += (size, stride)
        firsts.append(tile)
        tile += count
    return torch.cat(
        [
            shares(torch.tensor(firsts, dtype=torch.int64, device="cpu"), tiles),
            torch.tensor(table + strides, dtype=torch.int64, device="cpu"),
        ]
    )


def shares(firsts: Tensor, tiles: int) -> Tensor:
    """The segments that each sum's tiles belong to, from the first up to but without the second."""
    bounds = torch.arange(PARTIAL_SUMS + 1, dtype=torch.int64, device="cpu") * tiles // PARTIAL_SUMS
    begin, end = bounds[:-1], bounds[1:]
    share = torch.stack([torch.searchsorted(firsts, begin, right=True) - 1, torch.searchsorted(firsts, end)], dim=1)
    return torch.where((begin < end)[:, None], share, 0).reshape(-1)
