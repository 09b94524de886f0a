"""The float32 weights of a model with 16-bit parameters, as the next step will read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..dtensor import local, wrapped
from ..numerics.layout import as_real
from ..numerics.quantization import from_master
from .codec import master_value


def float32_weight(param: Tensor, entry: Mapping[str, Any]) -> Tensor:
    """A new tensor with the value that the next step of a parameter begins with, in float32 at least.

    Args:
        param: the parameter as it is now; of a DTensor, the result is one too.
        entry: its entry of ``optimizer.state``, or an empty mapping.
    """
    stored = as_real(local(param.detach()))
    value = master_value({name: local(tensor) for name, tensor in entry.items()}, stored)
    if value is None:
        value = stored.to(torch.promote_types(stored.dtype, torch.float32), copy=True)
    elif "master" in entry:
        value = from_master(stored, value)
    return wrapped(param, torch.view_as_complex(value) if param.is_complex() else value)
