"""Tensors whose storage was freed or shrunk, and what operators raise when they get one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LARGEST = 2**63 - 1
Arguments = dict[str, Any]
REFUSED = (RuntimeError, ValueError, TypeError)


def freed(tensor: Tensor) -> Tensor:
    tensor.untyped_storage().resize_(0)
    return tensor


def shrunk(tensor: Tensor) -> Tensor:
    """All but the last element are still there."""
    tensor.untyped_storage().resize_((tensor.numel() - 1) * tensor.element_size())
    return tensor


def with_offset(tensor: Tensor) -> Tensor:
    """A view that begins in the middle of its storage: once that is freed, it has an address all the same."""
    return torch.cat([tensor, tensor])[tensor.numel() :]


def meta(tensor: Tensor) -> Tensor:
    return tensor.to("meta")
