"""Uploads tables to a device, and says what a step may do while a CUDA graph is captured.

A capture runs nothing. It records work, which each replay does again. Hence:

- A table that a capture uploads is filled only by that graph's replays, so no other launch may use it. Every replay
  reads the pinned memory that the table is copied from, so that memory is kept.
- A step that needs new state is refused, with the reason, before anything is recorded. Every replay would zero the
  state, upload the step counts or lay out the moments again.
- Between two replays, user code may take eager steps or replay other graphs. A captured step therefore has its own
  scalars for each parameter, computed from that parameter's own step count (`step.plan.captured_plan`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .tensor_kinds import is_fake

_kept: list[Any] = []
"""Tensors that captured graphs read. torch does not say when a graph is destroyed, so they are kept permanently."""


def may_capture(device: torch.device) -> bool:
    """Whether steps on this device can be captured: CUDA graphs exist for CUDA devices only."""
    return device.type == "cuda"


def capturing(device: torch.device) -> bool:
    """Whether the current stream is capturing a CUDA graph."""
    try:
        return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    except RuntimeError:  # a fake tensor's device, where torch has no CUDA
        return False


def keep(*tensors: Tensor | None) -> None:
    """Keeps tensors alive that the graph being captured reads."""
    _kept.extend(tensor for tensor in tensors if tensor is not None)


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a CPU tensor to a device, through pinned memory so that the host does not wait; returns it for the CPU."""
    if device.type == "cpu":
        return tensor
    if device.type != "cuda" or is_fake(tensor):  # the meta device, for example
        return tensor.to(device)
    pinned = tensor.pin_memory()
    there = pinned.to(device, non_blocking=True)  # the allocator keeps pinned memory until the copy is done
    if capturing(device):
        keep(pinned, there)  # each replay copies again
    return there


NEW_STATE = (
    "a CUDA graph captures the first step of a parameter, or one after groups or state were edited or loaded: every "
    "replay would make its state again. Take one step before the capture"
)
NEW_COUNTS = (
    "a CUDA graph captures the first step after capturable = True was set, or a learning rate was put on the device: "
    "every replay would begin with the same step counts again. Take one step before the capture"
)
NOT_CAPTURABLE = "capturable = False: a CUDA graph that captures step() needs True, to replay it right"
COMPILING = "torch.compile traces step() while a CUDA graph is captured: call the compiled function once before"
"""Why a step is refused while a CUDA graph is captured."""
