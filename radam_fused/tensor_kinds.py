"""Tensors without memory of their own: wrapper subclasses, batches of vmap, fake tensors, copies yet to be made."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor

from .dtensor import local

_NO_DISPATCH = Tensor.__torch_dispatch__


def is_fake(tensor: Any) -> bool:
    """True for a FakeTensor, without importing them for those who have none."""
    module = sys.modules.get("torch._subclasses.fake_tensor")
    return module is not None and isinstance(tensor, module.FakeTensor)


def may_wrap(tensors: Iterable[Any]) -> bool:
    """True if one of many tensors is of a type that overrides ``__torch_dispatch__``."""
    kinds: set[Any] = set(map(type, tensors))
    return any(kind.__torch_dispatch__ is not _NO_DISPATCH for kind in kinds)


def is_copy_on_write(tensor: Tensor) -> bool:
    """True for a tensor that still shares its memory with another (`torch._lazy_clone`), until one is written."""
    return bool(torch._C._is_cow_tensor(tensor))  # type: ignore[attr-defined]


def is_wrapper(tensor: Any) -> bool:
    """True for a tensor of a subclass that holds other tensors in the place of memory of its own.

    What an in-place operator makes of them is up to the subclass, which may call it for each: moments that are not
    among them would be stepped twice. Fake tensors and a collective's result that is still arriving are none.
    """
    kind: Any = type(tensor)
    if kind.__torch_dispatch__ is _NO_DISPATCH or kind.__module__.startswith("torch._subclasses."):
        return False
    if hasattr(kind, "trigger_wait"):  # AsyncCollectiveTensor, which any operator completes
        return False
    with torch._C.DisableTorchFunctionSubclass():
        try:
            return bool(tensor.numel() > 0 and tensor.data_ptr() == 0 and not tensor.is_meta)
        except RuntimeError:  # no storage at all
            return True


def check_memory(tensor: Any, name: str) -> None:
    """Raises for a tensor that no operator of this package can read or write.

    Raises:
        TypeError: a wrapper subclass, by its type, or a tensor inside of torch.func.vmap.
    """
    inner = local(tensor)
    if is_batchedtensor(inner):
        raise TypeError(f"{name} is a batch of torch.func.vmap: must be a plain tensor, or differentiable=True")
    if is_wrapper(inner):
        kind = type(inner)
        inside = "" if inner is tensor else f"a {type(tensor).__name__} of "
        raise TypeError(
            f"{name} is {inside}a {kind.__module__}.{kind.__qualname__}, a tensor subclass without memory of its own: "
            "must be a plain tensor or a DTensor of one; frozen, it may be of any type"
        )
