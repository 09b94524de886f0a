"""Gradients that DistributedDataParallel averages once autograd has completed them: too late for a step in backward."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Container

import torch.distributed as dist
from torch import Tensor


def refuse_averaged(params: Container[Tensor], name_of: Callable[[Tensor], str]) -> None:
    """Raises where a DistributedDataParallel module averages the gradient of a parameter.

    The module's reducer leaves no mark on a parameter that Python sees, so this looks for modules among all objects
    that the garbage collector knows: a tenth of a second for a million of them, so call it once.

    Args:
        params: those that are to be stepped.
        name_of: what errors call a parameter.

    Raises:
        RuntimeError: such a parameter, where there are several ranks.
    """
    module = sys.modules.get("torch.nn.parallel.distributed")
    if module is None or not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    for found in gc.get_objects():
        if issubclass(type(found), module.DistributedDataParallel):
            averaged = next((p for p in getattr(found, "_module_parameters", ()) if p in params), None)
            if averaged is not None:
                raise RuntimeError(
                    f"{name_of(averaged)} is in a DistributedDataParallel module, which averages its gradient over the "
                    "ranks after the step in backward: step after the backward pass, or share out the model with "
                    "fully_shard"
                )
