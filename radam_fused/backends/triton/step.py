"""The ``triton`` backend's step: checks and describes what it is given, and starts the kernel on the current stream.

On a GPU what the kernel has to be told goes over in one pinned asynchronous copy; nothing here waits for the device.
With ``TRITON_INTERPRET=1`` in the environment before Triton is imported, the kernel runs interpreted on CPU tensors.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...numerics.layout import ALIGNMENT, SMALL_ALIGNMENT
from ...numerics.state_format import HALF
from ...numerics.tensor_checks import one_of_each, overlaps_itself
from ..operator_checks import check_step, check_tables
from ..reference.low_precision import DRAWS
from .compat import register_limit, warn_of_fusion
from .interpreter import mend
from .segments import Segment, segment_table, tile_map
from .state import State, as_stored
from .tables import Table, facts, on_device

TILE = 1024
"""Elements a tile: 128 threads with two 128-bit accesses each to every fp32 array."""
WARPS = 4
SLICE = 32 * WARPS
"""Elements at a time on the general path: one a thread."""
INTERPRETED_TILE = 32768
INTERPRETED_SLICE = 8192
"""The interpreter pays per tile and slice, not per element."""
STORED_SLICE = 256
"""On the general path of stored forms: a block that shares a scale."""
PLAIN_REGISTERS = 80
"""The most that leave six blocks to a multiprocessor; without a limit, ptxas spills some to make room for seven."""
STORED_REGISTERS = 128
"""The most that leave four blocks to a multiprocessor; without a limit, ptxas spills some to make room for five."""
PROGRAMS_PER_SM = 8


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


def require(operator: str, device: torch.device) -> None:
    """Raises where a Triton kernel cannot run on tensors of a device.

    Raises:
        RuntimeError: with the reason.
    """
    reason = unavailable()
    if reason is None and device.type != "cuda" and not interpreted():
        reason = f"the tensors are on {device}: TRITON_INTERPRET=1 runs the kernels interpreted on the CPU"
    if reason is not None:
        raise RuntimeError(f"radam_fused::{operator}_triton: {reason}")
    if device.type == "cuda":
        warn_of_fusion(device)
    else:
        mend()


def programs(work: int, device: torch.device) -> int:
    """How many programs a persistent grid has for so many pieces of work."""
    if device.type != "cuda":
        return work
    return min(work, PROGRAMS_PER_SM * torch.cuda.get_device_properties(device).multi_processor_count)


def stored(dtype: torch.dtype) -> Any:
    """What a kernel takes a tensor's elements for: bfloat16 travels as its bits (`narrow` in the step's kernel)."""
    import triton.language as tl

    return {
        torch.float32: tl.float32,
        torch.float64: tl.float64,
        torch.float16: tl.float16,
        torch.bfloat16: tl.int16,
    }[dtype]


def step(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    segments: Tensor,
    scalar_index: Tensor,
    scalars: Tensor,
    zero_grads: bool = False,
    scales: Tensor | None = None,
    master: Tensor | None = None,
    stochastic: bool = False,
    rng_offsets: Tensor | None = None,
) -> None:
    """``radam_fused::step_triton``; arguments and errors as `backends/ops.py` says. One launch a gradient dtype."""
    device = exp_avg.device
    require("step", device)
    check_tables(len(params), exp_avg, segments, scalar_index, scalars, rng_offsets)
    places, row = segments.tolist(), scalar_index.tolist()
    drawn = segments[:, 0].tolist() if rng_offsets is None else rng_offsets.tolist()
    if len(params) != len(grads):
        raise ValueError(f"grads has {len(grads)} tensors: must have {len(params)}, as params has")
    rounds = stochastic and len(params) > 0 and params[0].dtype in HALF
    state = State(exp_avg, exp_avg_sq, scales, master, rounds)
    # All that the checks and the table go by: where it is what it was, they would find what they have found.
    # Elements that several threads read can be zeroed only when all have: after the kernel.
    shared = [one_of_each(grad) for grad in grads if zero_grads and not grad.is_contiguous() and overlaps_itself(grad)]
    zeroed_by_kernel = zero_grads and not shared
    known = facts(params), facts(grads), state.facts(), places, drawn, row, len(scalars), zero_grads

    @functools.cache
    def checked() -> list[Segment]:
        check_step(
            params, grads, state[:4], (segments, scalar_index, scalars, rng_offsets), stochastic, SMALL_ALIGNMENT
        )
        starts = (start for start, _ in places)
        return [Segment(*parts) for parts in zip(params, grads, starts, row, drawn, strict=True)]

    # Shards of DTensors may; all others begin where segments do.
    anywhere = rng_offsets is not None and not state.plain() and bool((rng_offsets % DRAWS).any())
    tile = TILE if device.type == "cuda" else INTERPRETED_TILE
    launches = [
        _Launch([param.numel() for param, grad in zip(params, grads, strict=True) if grad.dtype == dtype], dtype, tile)
        for dtype in dict.fromkeys(grad.dtype for grad in grads)
    ]
    wanted = [table for launch in launches for table in launch.tables(exp_avg.data_ptr(), known, checked)]
    if scalars.device != device:
        wanted.append(Table(lambda: scalars))
    with torch.cuda.device_of(exp_avg):
        tables = on_device(device, wanted)
        scalars = scalars if scalars.device == device else tables.pop().view(torch.float64)
        for launch, table, tile_segment in zip(launches, tables[::2], tables[1::2], strict=True):
            launch.start(table, tile_segment, scalars, state, params[0].dtype, zeroed_by_kernel, anywhere)
    if shared:
        for grad in grads:
            one_of_each(grad).zero_()


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
        state: State,
        param_dtype: torch.dtype,
        zero_grads: bool,
        anywhere: bool,
    ) -> None:
        tiles = sum(-(-length // self.tile) for length in self.lengths)
        if tiles == 0:
            return
        exp_avg = state.exp_avg
        grid = (programs(tiles, exp_avg.device),)
        # The walks lie behind the segments.
        common = (
            table,
            tile_segment.view(torch.int32),
            table,
            scalars,
            as_stored(exp_avg),
            as_stored(state.exp_avg_sq),
            tiles,
        )
        constants = {
            "PARAM": stored(param_dtype),
            "GRAD": stored(self.dtype),
            "TILE": self.tile,
            "ZERO_GRADS": zero_grads,
            "num_warps": WARPS,
            "enable_fp_fusion": False,
        }
        if state.plain() and param_dtype != torch.float64:
            constants.update(register_limit(PLAIN_REGISTERS))
        if state.plain():
            from .step_kernel import step_kernel

            compute = stored(torch.float64 if param_dtype == torch.float64 else torch.float32)
            lanes = SLICE if exp_avg.is_cuda else INTERPRETED_SLICE
            step_kernel[grid](*common, COMPUTE=compute, SLICE=lanes, **constants)
        else:
            from .low_precision_kernel import stored_step_kernel

            stored_step_kernel[grid](
                *common,
                state.scales,
                as_stored(state.master_buffer),
                exp_avg.numel() // ALIGNMENT,
                MASTER=state.master_format(),
                STOCHASTIC=state.stochastic,
                ANYWHERE=anywhere,
                SLICE=STORED_SLICE if exp_avg.is_cuda else INTERPRETED_SLICE,
                **register_limit(STORED_REGISTERS),
                **constants,
            )
