"""The ``triton`` backend's step: checks its arguments, makes the tables, and launches the kernel on the current stream.

On a GPU the kernel's tables are uploaded in one pinned asynchronous copy; nothing here waits for the device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...numerics.layout import BLOCK, SMALL_ALIGNMENT
from ...numerics.philox import RANDS_PER_CALL
from ...numerics.tensor_checks import overlaps_itself, storage_view
from ..operator_args import StepArgs
from ..operator_checks import check_step, check_tables
from .availability import WARPS, require, stored
from .compat import PACKED, architecture, register_limit, warp_size
from .launch import Arguments, launch, on_device_of
from .tables import Segment, Table, facts, on_device, segment_table, tile_map

TILE = 1024
"""Elements a tile: 128 threads with two 128-bit accesses each to every fp32 array."""
SLICE = 32 * WARPS
"""Elements at a time on the general path: one a thread, where a warp has 32."""
INTERPRETED_TILE = 32768
INTERPRETED_SLICE = 8192
"""The interpreter pays per tile and slice, not per element."""
LOW_PRECISION_SLICE = BLOCK
"""Elements at a time on the general path of low-precision state: a block that shares a scale is never cut."""
FULL_PRECISION_REGISTERS = 80
"""The most that leave six blocks to a multiprocessor; without a limit, ptxas spills some to make room for seven."""
HALF_REGISTERS = 88
"""The same of float16 on Blackwell, where Triton 3.8 and 3.9 spill with 80; they leave five blocks."""
LOW_PRECISION_REGISTERS = 128
"""The most that leave four blocks to a multiprocessor; without a limit, ptxas spills some to make room for five."""
CROWDED_REGISTERS = 144
"""The same of the formats that spill with those (`low_precision_registers`); they leave three blocks."""
PROGRAMS_PER_SM = 8


def programs(work: int, device: torch.device) -> int:
    """How many programs a persistent grid has for so many pieces of work."""
    if device.type != "cuda":
        return work
    return min(work, PROGRAMS_PER_SM * torch.cuda.get_device_properties(device).multi_processor_count)


def tile_of(device: torch.device) -> int:
    """Elements of a tile on a device."""
    return TILE if device.type == "cuda" else INTERPRETED_TILE


def starts_anywhere(args: StepArgs) -> bool:
    """Whether random bits of some segment start at no multiple of `RANDS_PER_CALL`: of DTensors' shards they may."""
    offsets = args.rng_offsets
    if offsets is None or args.state.in_full_precision(args.rounds_stochastically):
        return False
    return bool((offsets % RANDS_PER_CALL).any())


def as_stored(buffer: Tensor | None) -> Tensor | None:
    """A buffer as a kernel is given it: bfloat16 travels as its bits (`narrow` in the step's kernel)."""
    return buffer.view(torch.int16) if buffer is not None and buffer.dtype == torch.bfloat16 else buffer


def step(args: StepArgs) -> None:
    """``radam_fused::step_triton``; arguments and errors as `backends/ops.py` says. One launch a gradient dtype."""
    params, grads, scalars, state = args.params, args.grads, args.scalars, args.state
    device = args.exp_avg.device
    require("step", device)
    check_tables(args)
    places, row, offsets = args.segments.tolist(), args.scalar_index.tolist(), args.offsets()
    if len(params) != len(grads):
        raise ValueError(f"grads has {len(grads)} tensors: must have {len(params)}, as params has")
    # Cache key of the checks and the table: if it is unchanged, the checked table is used again.
    # Elements that several threads read can be zeroed only when all have: after the kernel.
    shared = [
        storage_view(grad) for grad in grads if args.zero_grads and not grad.is_contiguous() and overlaps_itself(grad)
    ]
    zeroed_by_kernel = args.zero_grads and not shared
    buffers = facts([buffer for buffer in state if buffer is not None]), state.scales is None, state.master is None
    known = (
        facts(params),
        facts(grads),
        buffers,
        args.rounds_stochastically,
        places,
        offsets,
        row,
        len(scalars),
        args.zero_grads,
    )

    @functools.cache
    def checked() -> list[Segment]:
        check_step(args, SMALL_ALIGNMENT)
        starts = (start for start, _ in places)
        return [Segment(*parts) for parts in zip(params, grads, starts, row, offsets, strict=True)]

    anywhere = starts_anywhere(args)
    tile = tile_of(device)
    launches = [
        _Launch([param.numel() for param, grad in zip(params, grads, strict=True) if grad.dtype == dtype], dtype, tile)
        for dtype in dict.fromkeys(grad.dtype for grad in grads)
    ]
    wanted = [table for launch in launches for table in launch.tables(args.exp_avg.data_ptr(), known, checked)]
    if scalars.device != device:
        wanted.append(Table(lambda: scalars))
    with on_device_of(args.exp_avg):
        tables = on_device(device, wanted)
        scalars = scalars if scalars.device == device else tables.pop().view(torch.float64)
        for launch, table, tile_segment in zip(launches, tables[::2], tables[1::2], strict=True):
            launch.start(table, tile_segment, scalars, args, zeroed_by_kernel, anywhere)
    if shared:
        for grad in grads:
            storage_view(grad).zero_()


class _Launch(NamedTuple):
    """What goes in one launch: the segments whose gradients have one dtype."""

    lengths: list[int]
    dtype: torch.dtype
    tile: int

    def tables(self, bucket: int, known: object, checked: Callable[[], list[Segment]]) -> list[Table]:
        def segments() -> Tensor:
            return segment_table([s for s in checked() if s.grad.dtype == self.dtype], self.tile)

        return [
            Table(segments, ("segments", bucket, self.dtype), (self.tile, known)),
            Table(
                functools.partial(tile_map, self.lengths, self.tile),
                ("tiles", bucket, self.dtype),
                (self.tile, self.lengths),
            ),
        ]

    def start(
        self,
        table: Tensor,
        tile_segment: Tensor,
        scalars: Tensor,
        args: StepArgs,
        zero_grads: bool,
        anywhere: bool,
    ) -> None:
        tiles = sum(-(-length // self.tile) for length in self.lengths)
        if tiles == 0:
            return
        kernel, constants = kernel_for(args, self.dtype, self.tile, zero_grads, anywhere)
        given = arguments(args, table, tile_segment, scalars, tiles)
        launch(kernel, programs(tiles, args.exp_avg.device), given, constants)


def arguments(args: StepArgs, table: Tensor, tile_segment: Tensor, scalars: Tensor, tiles: int) -> Arguments:
    """What the kernel of a step takes before its constants."""
    state = args.state
    # The strides are stored behind the segments.
    common = (
        table,
        tile_segment.view(torch.int32),
        table,
        scalars,
        as_stored(state.exp_avg),
        as_stored(state.exp_avg_sq),
    )
    if state.in_full_precision(args.rounds_stochastically):
        return *common, tiles
    return *common, tiles, state.scales, as_stored(state.master), args.exp_avg.numel() // BLOCK


def full_precision_registers(dtypes: set[torch.dtype], arch: int) -> int:
    """The limit of a thread's registers, by the dtypes of parameters and gradients and NVIDIA's architecture."""
    return HALF_REGISTERS if torch.float16 in dtypes and arch >= PACKED else FULL_PRECISION_REGISTERS


def low_precision_registers(
    param: torch.dtype, moments: torch.dtype, master: str | None, stochastic: bool, arch: int
) -> int:
    """The limit of a thread's registers, by the state format and NVIDIA's architecture.

    8-bit moments beside stochastic rounding or a split master buffer leave too few registers with packed operations,
    and float16 does on every architecture.
    """
    packed = arch >= PACKED
    crowded = (stochastic and (packed or param == torch.float16)) or (master == "split" and packed)
    return CROWDED_REGISTERS if moments == torch.int8 and crowded else LOW_PRECISION_REGISTERS


def kernel_for(
    args: StepArgs, grad_dtype: torch.dtype, tile: int, zero_grads: bool, anywhere: bool
) -> tuple[Any, dict[str, Any]]:
    """The kernel of a step over gradients of one dtype, with its constants and the compiler's options.

    Args:
        args: the step's.
        grad_dtype: the gradients'.
        tile: how many elements a tile has.
        zero_grads: whether the kernel leaves zeros in the gradients.
        anywhere: whether random bits of some segment start at no multiple of `RANDS_PER_CALL`.
    """
    state, param_dtype, on_gpu = args.state, args.params[0].dtype, args.exp_avg.is_cuda
    constants: dict[str, Any] = {
        "PARAM": stored(param_dtype),
        "GRAD": stored(grad_dtype),
        "TILE": tile,
        "ZERO_GRADS": zero_grads,
        "num_warps": WARPS,
        "enable_fp_fusion": False,
    }
    if state.in_full_precision(args.rounds_stochastically):
        from .step_kernel import step_kernel

        wide = param_dtype == torch.float64
        constants["COMPUTE"] = stored(torch.float64 if wide else torch.float32)
        constants["SLICE"] = SLICE * warp_size() // 32 if on_gpu else INTERPRETED_SLICE
        limit = full_precision_registers({param_dtype, grad_dtype}, architecture())
        return step_kernel, constants | ({} if wide else register_limit(limit))
    from .low_precision_kernel import low_precision_step_kernel

    master, stochastic = state.master_format(), args.rounds_stochastically
    limit = low_precision_registers(param_dtype, state.exp_avg.dtype, master, stochastic, architecture())
    constants["MASTER"] = master
    constants["STOCHASTIC"] = stochastic
    constants["ANYWHERE"] = anywhere
    constants["SLICE"] = LOW_PRECISION_SLICE if on_gpu else INTERPRETED_SLICE
    return low_precision_step_kernel, constants | register_limit(limit)
