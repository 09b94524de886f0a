"""Recognises tensors that have no memory of their own for a kernel to write.

These are wrapper subclasses, batched tensors of torch.func.vmap, fake tensors, and lazy copies (copy on write).
"""

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
    """True for a FakeTensor.

    The class is looked up in ``sys.modules``: a program that has not imported it has no fake tensor, and importing it
    here would slow down every start.
    """
    module = sys.modules.get("torch._subclasses.fake_tensor")
    return module is not None and isinstance(tensor, module.FakeTensor)


def may_wrap(tensors: Iterable[Any]) -> bool:
    """True if the type of one of these tensors overrides ``__torch_dispatch__``.

    Cheap for many tensors: it looks at each type once. `is_wrapper` decides for a single tensor.
    """
    kinds: set[Any] = set(map(type, tensors))
    return any(kind.__torch_dispatch__ is not _NO_DISPATCH for kind in kinds)


def is_copy_on_write(tensor: Tensor) -> bool:
    """True for a lazy copy (``torch._lazy_clone``), which shares memory with another tensor until one is written."""
    if type(tensor).__torch_dispatch__ is not _NO_DISPATCH:  # torch 2.15 does not say it of such a tensor
        with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunctionSubclass():
            tensor = tensor.as_subclass(Tensor)  # an alias
    return bool(torch._C._is_cow_tensor(tensor))  # type: ignore[attr-defined]


def is_wrapper(tensor: Any) -> bool:
    """True for a tensor subclass that holds other tensors instead of memory of its own.

    The subclass decides what an in-place operator does. It may call the operator once per inner tensor, which would
    update plain moments several times in one step. A fake tensor is not a wrapper in this sense, and neither is the
    result of a collective that is still running.
    """
    kind: Any = type(tensor)
    if kind.__torch_dispatch__ is _NO_DISPATCH or kind.__module__.startswith("torch._subclasses."):
        return False
    if hasattr(kind, "trigger_wait"):  # AsyncCollectiveTensor: any operator waits for its collective
        return False
    with torch._C.DisableTorchFunctionSubclass():
        try:
            return bool(tensor.numel() > 0 and tensor.data_ptr() == 0 and not tensor.is_meta)
        except RuntimeError:  # the subclass has no storage
            return True


def check_memory(tensor: Any, name: str) -> None:
    """Raises for a tensor that no operator of this package can read or write.

    Args:
        tensor: a parameter or a gradient, possibly a DTensor; then its local tensor is checked.
        name: what the error calls it.

    Raises:
        TypeError: a wrapper subclass or a batched tensor of torch.func.vmap. The message names the type.
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
