"""A plan as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..numerics.state_format import HALF

if TYPE_CHECKING:
    from .choices import MemoryPlan

_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
_LEFT = 4
"""How many of the columns are options, and aligned to the left."""


def _unit(largest: float) -> tuple[float, str]:
    return next((unit for unit in _UNITS if largest >= unit[0]), _UNITS[-1])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def call(options: Mapping[str, Any]) -> str:
    """Options as they are written in a call."""
    shown = (f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}" for name, value in options.items())
    return f"FusedRAdam({', '.join(('params', *shown))})"


def _cells(options: Mapping[str, Any], default: torch.dtype) -> list[str]:
    master, rounding = options.get("master_weights", "-"), options.get("rounding", "-")
    dtype = options.get("state_dtype", default)
    return [_name(dtype), master, rounding, "host" if options.get("offload") else "-"]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if at < _LEFT else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _advice(plan: MemoryPlan, size: float, unit: str) -> str:
    best = plan.recommended
    if best is not None:
        return f"* recommended: {call(best.options)}: {best.why}."
    least = min(plan, key=lambda c: c.total)
    return f"Nothing fits: {call(least.options)} takes the least, {least.total / size:.2f} {unit} on the GPU."


def table(plan: MemoryPlan) -> str:
    """The table that ``python -m radam_fused plan`` prints."""
    size, unit = _unit(max(c.total + c.host_state for c in plan))
    step_size, step_unit = _unit(max(c.step_bytes for c in plan))
    head = ["state_dtype", "master_weights", "rounding", "offload"]
    head += ["weights", "gradients", "state", "on host", "total", "B/param", f"step {step_unit}", "step ms"]
    rows = [head]
    moments = torch.float64 if plan.dtypes == (torch.float64,) else torch.float32
    for c in plan:
        sizes = [f"{n / size:.2f}" for n in (c.weights, c.gradients, c.state, c.host_state, c.total)]
        step = [f"{c.step_bytes / step_size:.2f}", ">= " + f"{c.milliseconds:#.3g}".rstrip(".")]
        rows.append([*_cells(c.options, moments), *sizes, f"{c.bytes_per_parameter:.2f}", *step])
    lines = _aligned(rows)
    marks = ["  ", *("* " if c.why else "  " for c in plan)]
    dtypes = _name(plan.dtypes[0]) + (" and " + ", ".join(map(_name, plan.dtypes[1:])) if plan.dtypes[1:] else "")
    sharded = f"FSDP2 over {plan.gpus} GPUs" if plan.gpus > 1 else "one GPU, or each one under DistributedDataParallel"
    limit = "" if plan.memory is None else f", at most {plan.memory / size:.2f}"
    notes = [
        _advice(plan, size, unit),
        f"step ms: a lower bound, not a measurement: the bytes that a step moves, at {plan.bandwidth / 1e12:g} TB/s.",
        "flatten=True keeps gradients allocated between steps; its flat buffers take "
        f"{plan.flatten_padding / size:.2f} {unit} more.",
        "Not counted: activations, buffers of the model, and what FSDP2 gathers for a layer.",
    ]
    if any(c.host_state for c in plan):
        notes[2:2] = [f"offload: bytes and bound are those of the bus, {plan.bus_bandwidth / 1e9:g} GB/s each way."]
    if not set(HALF).isdisjoint(plan.dtypes):
        notes.append("16-bit parameters without master weights and with the default rounding lose small updates.")
    title = f"{plan.parameters:,} parameters in {dtypes}; {sharded}; {unit} per GPU{limit}"
    return "\n".join([title, "", *map("".join, zip(marks, lines, strict=True)), "", *notes])
