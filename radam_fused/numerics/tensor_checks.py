"""Checks parameters and gradients; each error names the tensor, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn.parameter import is_lazy

from ..dtensor import check_placed, is_sharded, local
from ..tensor_kinds import check_memory, is_copy_on_write
from .layout import layout_hash
from .overlaps import sharing

HALF_OR_SINGLE = (torch.float32, torch.float16, torch.bfloat16)
PARAMETER_DTYPES = (*HALF_OR_SINGLE, torch.float64, torch.complex64, torch.complex128)


def gradient_dtypes(param_dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """The dtypes that a parameter's gradient may have: a step of float64 computes in float64, all others in float32."""
    return HALF_OR_SINGLE if param_dtype in HALF_OR_SINGLE else (param_dtype,)


def is_stored(tensor: Tensor) -> bool:
    """True if a strided tensor's storage holds all of its elements; False if it was freed or shrunk by ``resize_``."""
    if tensor.numel() == 0 or tensor.is_meta:
        return True
    last = tensor.storage_offset()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        last += (size - 1) * stride
    fits = last < tensor.untyped_storage().nbytes() // tensor.element_size()
    # data_ptr() of a copy-on-write tensor would make torch copy it.
    return fits and (is_copy_on_write(tensor) or tensor.data_ptr() != 0)


def check_stored(**tensors: Tensor | None) -> None:
    """Raises for the first tensor whose storage does not hold all of its elements.

    Raises:
        ValueError: the storage is too small. The message names the tensor.
    """
    for name, tensor in tensors.items():
        if tensor is not None and not is_stored(tensor):
            raise ValueError(
                f"{name} of shape {tuple(tensor.shape)}: its storage has {tensor.untyped_storage().nbytes()} bytes and "
                "does not hold all of its elements; it was freed or made smaller (resize_)"
            )


def check_gradients(params: Sequence[Tensor], grads: Sequence[Tensor], names: Sequence[str] | None = None) -> None:
    """Raises for the first gradient that does not fit its parameter.

    Raises:
        RuntimeError: a sparse gradient (torch.optim's class for it).
        TypeError: a gradient dtype that no kernel widens into the parameter's, a DTensor for a plain parameter, or a
            tensor subclass without memory.
        ValueError: a gradient of another shape or on another device.
    """
    for index, (param, grad) in enumerate(zip(params, grads, strict=True)):
        name = names[index] if names is not None else f"parameter {index} of shape {tuple(param.shape)}"
        check_memory(grad, f"gradient of {name}")
        if is_sharded(grad) and not is_sharded(param):
            raise TypeError(f"gradient of {name} is a DTensor: must be a plain tensor, as its parameter is")
        if grad.layout != torch.strided:
            raise RuntimeError(
                f"gradient of {name}: FusedRAdam does not support sparse gradients; "
                f"its layout is {grad.layout}, it must be torch.strided"
            )
        if grad.device != param.device:
            raise ValueError(f"gradient of {name} is on {grad.device}: must be on {param.device}, as its parameter is")
        if grad.shape != param.shape:
            raise ValueError(
                f"gradient of {name} has shape {tuple(grad.shape)}: must have its parameter's, {tuple(param.shape)}"
            )
        allowed = gradient_dtypes(param.dtype)
        if grad.dtype not in allowed:
            raise TypeError(
                f"gradient of {name} is {grad.dtype}: must be one of {allowed} for a {param.dtype} parameter"
            )


def check_layouts(params: Sequence[Tensor], segments: Tensor, state_dtype: torch.dtype) -> None:
    """Raises if a parameter no longer has the layout for which its moments were laid out.

    Raises:
        RuntimeError: other sizes or strides, or a dtype that needs moments of another dtype.
    """
    for index, (param, (_, layout)) in enumerate(zip(params, segments.tolist(), strict=True)):
        if (param.dtype == torch.float64) != (state_dtype == torch.float64):
            raise RuntimeError(f"tensor {index}: {param.dtype} parameters do not go with {state_dtype} moments")
        if layout_hash(param.shape, param.stride()) != layout:
            raise RuntimeError(
                f"tensor {index} of the lists: shape or strides have changed since the moments were laid out"
            )


def overlaps_itself(param: Tensor) -> bool:
    """Whether two elements of a strided tensor may share memory: some stride does not reach past the smaller ones."""
    reach = 0
    for stride, size in sorted(zip(param.stride(), param.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += (size - 1) * stride
    return False


def storage_view(grad: Tensor, refuse_overlaps: bool = True) -> Tensor:
    """A view of a gradient in which expanded dimensions have size 1, so that each element is written once.

    Args:
        grad: any strided tensor.
        refuse_overlaps: whether to raise if elements still share memory.

    Raises:
        ValueError: see ``refuse_overlaps``.
    """
    grad = grad.detach()
    for dim, stride in enumerate(grad.stride()):
        if stride == 0 and grad.shape[dim] > 1:
            grad = grad.narrow(dim, 0, 1)
    if refuse_overlaps and grad.numel() and overlaps_itself(grad):
        raise ValueError(f"zero_grads=True: a gradient's elements share memory (strides {tuple(grad.stride())})")
    return grad


def check_disjoint(params: Sequence[Tensor], names: Sequence[str]) -> None:
    """Raises if two parameters share memory: as views of a flat buffer they would no longer be tied.

    Raises:
        ValueError: two share memory. The message names both.
        TypeError: a wrapper of torch.func, which has no memory to compare.
    """
    for index, p in enumerate(params):
        if is_functorch_wrapped_tensor(p):
            raise TypeError(f"flatten=True: {names[index]} is a wrapper of torch.func: must be plain, or flatten=False")
    for later, earlier in sharing(params):
        raise ValueError(
            f"flatten=True: {names[later]} and {names[earlier]} share memory; pass one of them, or flatten=False"
        )


def may_step(param: Tensor) -> bool:
    """True if a parameter has a gradient or may get one in the next backward pass.

    False for a frozen parameter and for an uninitialised one (of a lazy module that has not run).
    """
    return (param.requires_grad or param.grad is not None) and not is_lazy(param)


def check_parameter(param: Tensor, name: str) -> None:
    """Raises for a parameter that no backend can update.

    Raises:
        TypeError: an integer or unsupported dtype, or a sparse parameter.
        ValueError: a parameter whose elements share memory, or that is a lazy conjugate or negative of its memory,
            or a DTensor with a ``Partial`` placement.
    """
    if param.dtype not in PARAMETER_DTYPES:
        raise TypeError(f"{name} is {param.dtype}: must be one of {PARAMETER_DTYPES}")
    if param.layout != torch.strided:
        raise TypeError(f"{name} has layout {param.layout}: must be torch.strided")
    if param.is_conj() or param.is_neg():
        raise ValueError(f"{name} is a lazy {'conjugate' if param.is_conj() else 'negative'}: pass it resolved")
    check_placed(param, name)
    param = local(param)
    if param.numel() and overlaps_itself(param):
        raise ValueError(f"{name} is expanded (strides {tuple(param.stride())}): several elements share memory")


def group_names(group: dict[str, Any], index: int) -> list[str]:
    """What errors call a group's parameters: the names that the caller gave, or their indices."""
    return [
        f"parameter {name!r}" if isinstance(name, str) else f"param_groups[{index}]['params'][{k}]"
        for k, name in enumerate(group.get("param_names") or [None] * len(group["params"]))
    ]
