"""What goes to a device, and CUDA graphs: what a step may do while one is captured, and what the capture leaves behind.

A capture runs nothing. What it records is done in every replay, and not before the first one:

- A table that a capture uploads is filled by the replays of that graph alone, so nothing else may find it. The pinned
  memory that it is copied from is read in every replay, so it stays.
- New state would be zeroed again, step counts uploaded again and moments laid out again in every replay, so a step that
  needs any of this is refused, with the reason, before it records anything.
- Eager steps and other graphs' replays may be taken between two replays, so a captured step has a row of scalars for
  each parameter, made from that parameter's own count (`Bucket.captured_plan`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .tensor_kinds import is_fake

_kept: list[Any] = []
"""What graphs refer to. A graph does not report when it is destroyed, so this stays."""


def may_capture(device: torch.device) -> bool:
    """Whether graphs that record steps on this device exist at all."""
    return device.type == "cuda"


def capturing(device: torch.device) -> bool:
    """Whether the current stream of the device records a CUDA graph."""
    try:
        return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    except RuntimeError:  # a fake tensor's device, where torch has no CUDA
        return False


def keep(*tensors: Tensor | None) -> None:
    """Keeps what a graph that is being captured refers to."""
    _kept.extend(tensor for tensor in tensors if tensor is not None)


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device, through pinned memory so that nothing waits; itself where it is there."""
    if device.type == "cpu":
        return tensor
    if device.type != "cuda" or is_fake(tensor):  # of the meta device, say
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
