"""The ``triton`` backend: builds the segment table of a launch and starts the kernel, on the current stream.

On a GPU the table goes over in one pinned asynchronous copy; nothing here waits for the device. With
``TRITON_INTERPRET=1`` in the environment before Triton is imported, the same kernel runs interpreted on CPU tensors.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from ..checks import check_gradients, check_layouts
from ..layout import is_dense

TILE = 1024
"""Elements a tile: 128 threads with two 128-bit accesses each to every fp32 array."""
WARPS = 4
SLICE = 32 * WARPS
"""Elements at a time on the general path: one a thread."""
INTERPRETED_TILE = 32768
INTERPRETED_SLICE = 8192
"""The interpreter pays per tile and slice, not per element."""
PROGRAMS_PER_SM = 8
ALIGNED = 16
"""Bytes: the width of a vector access."""


def interpreted() -> bool:
    """Whether Triton interprets kernels on the CPU instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def unavailable() -> str | None:
    """Why this backend cannot run here, or None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install 'radam_fused[triton]'"
    if not (torch.cuda.is_available() or interpreted()):
        return "torch sees no GPU (TRITON_INTERPRET=1 runs the kernels interpreted on the CPU, for tests)"
    return None


@functools.lru_cache(maxsize=64)
def _tile_map(lengths: tuple[int, ...], tile: int, device: torch.device) -> tuple[Tensor, list[int]]:
    """Which segment each tile belongs to, int32 on the device, and the first tile of each segment."""
    tiles = torch.tensor([(length + tile - 1) // tile for length in lengths], dtype=torch.int64)
    first = tiles.cumsum(0) - tiles
    segments = torch.repeat_interleave(torch.arange(len(lengths), dtype=torch.int32), tiles)
    return segments.to(device), first.tolist()


def _walk(param: Tensor, grad: Tensor) -> list[int] | None:
    """How to find a strided pair's elements in the order of its moments, inner dimension first; None if both are plain.

    The Python twin of ``plain`` in csrc/segments.h.
    """
    if param.is_contiguous() and grad.is_contiguous():
        return None
    dims = list(range(param.dim()))
    if is_dense(param):
        dims.sort(key=list(param.stride()).__getitem__, reverse=True)
        ordered = [d for d in dims if param.shape[d] != 1]
        if is_dense(grad) and [grad.stride(d) for d in ordered] == [param.stride(d) for d in ordered]:
            return None
    walk = [len(dims)]
    for d in reversed(dims):
        walk += [param.shape[d], param.stride(d), grad.stride(d)]
    return walk


def _language_dtypes(param: torch.dtype, grad: torch.dtype) -> dict[str, Any]:
    import triton.language as tl

    # bfloat16 travels as its bits: see _narrow in the kernel.
    stored = {
        torch.float32: tl.float32,
        torch.float64: tl.float64,
        torch.float16: tl.float16,
        torch.bfloat16: tl.int16,
    }
    return {
        "PARAM": stored[param],
        "GRAD": stored[grad],
        "COMPUTE": tl.float64 if param == torch.float64 else tl.float32,
    }


def _launch(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    starts: list[int],
    row_of: list[int],
    rows: Tensor,
) -> None:
    """One kernel over segments of one pair of dtypes."""
    from .triton_kernel import step_kernel

    device = exp_avg.device
    on_gpu = device.type == "cuda"
    tile, slice_ = (TILE, SLICE) if on_gpu else (INTERPRETED_TILE, INTERPRETED_SLICE)
    lengths = tuple(map(Tensor.numel, params))
    tile_segment, first_tiles = _tile_map(lengths, tile, device)
    tiles = tile_segment.numel()
    if tiles == 0:
        return

    table: list[int] = []
    walks: list[int] = []
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        addresses = param.data_ptr(), grad.data_ptr()
        walk = _walk(param, grad) if lengths[i] else None
        aligned = walk is None and all(address % ALIGNED == 0 for address in addresses)
        at = -1 if walk is None else len(walks)
        table += (*addresses, starts[i], lengths[i], row_of[i], first_tiles[i], aligned, at)
        walks += walk or ()

    integers = torch.tensor(table + walks, dtype=torch.int64)
    host = torch.cat([integers, rows.reshape(-1).view(torch.int64)])
    if on_gpu:
        host = host.pin_memory()  # the caching allocator keeps it until the copy is done
    packed = host.to(device, non_blocking=True)
    segment_table, walk_table, row_table = packed.split([len(table), len(walks), rows.numel()])

    programs = tiles
    if on_gpu:
        programs = min(tiles, PROGRAMS_PER_SM * torch.cuda.get_device_properties(device).multi_processor_count)
    with torch.cuda.device_of(exp_avg):
        step_kernel[(programs,)](
            segment_table,
            tile_segment,
            walk_table if walks else segment_table,
            row_table.view(torch.float64),
            exp_avg,
            exp_avg_sq,
            tiles,
            **_language_dtypes(params[0].dtype, grads[0].dtype),
            TILE=tile,
            SLICE=slice_,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )


def step(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    segments: Tensor,
    row_of: Tensor,
    rows: Tensor,
) -> None:
    """``radam_fused::step_triton``; arguments and errors as `radam_fused.ops` says. One launch a gradient dtype."""
    reason = unavailable()
    if reason is None and exp_avg.device.type != "cuda" and not interpreted():
        reason = f"the tensors are on {exp_avg.device}: TRITON_INTERPRET=1 runs the kernels interpreted on the CPU"
    if reason is not None:
        raise RuntimeError(f"radam_fused::step_triton: {reason}")
    check_layouts(params, segments, exp_avg.dtype)
    check_gradients(params, grads)
    by_dtype: dict[torch.dtype, list[int]] = defaultdict(list)
    for i, grad in enumerate(grads):
        by_dtype[grad.dtype].append(i)
    start, row = segments[:, 0].tolist(), row_of.tolist()
    for chosen in by_dtype.values():
        _launch(
            [params[i] for i in chosen],
            [grads[i] for i in chosen],
            exp_avg,
            exp_avg_sq,
            [start[i] for i in chosen],
            [row[i] for i in chosen],
            rows,
        )
