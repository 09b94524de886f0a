"""What a step asks of its parameters and gradients, with errors that name the tensor, the value and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

HALF_OR_SINGLE = (torch.float32, torch.float16, torch.bfloat16)
PARAMETER_DTYPES = (*HALF_OR_SINGLE, torch.float64)


def gradient_dtypes(param_dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """Which gradients a parameter takes: float64 computes in float64, everything else in float32."""
    return (torch.float64,) if param_dtype == torch.float64 else HALF_OR_SINGLE


def check_gradients(params: Sequence[Tensor], grads: Sequence[Tensor], names: Sequence[str] | None = None) -> None:
    """Raises for the first gradient that does not fit its parameter.

    Raises:
        RuntimeError: a sparse gradient (torch.optim's class for it).
        TypeError: a gradient dtype that no kernel widens into the parameter's.
        ValueError: a gradient of another shape or on another device.
    """
    for index, (param, grad) in enumerate(zip(params, grads, strict=True)):
        name = names[index] if names is not None else f"parameter {index} of shape {tuple(param.shape)}"
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


def check_parameter(param: Tensor, name: str) -> None:
    """Raises for a parameter that no backend can update.

    Raises:
        TypeError: an integer or unsupported dtype, or a sparse parameter.
        NotImplementedError: a complex parameter.
        ValueError: a parameter whose elements share memory.
    """
    if param.is_complex():
        raise NotImplementedError(f"{name} is {param.dtype}: complex parameters are not supported yet")
    if param.dtype not in PARAMETER_DTYPES:
        raise TypeError(f"{name} is {param.dtype}: must be one of {PARAMETER_DTYPES}")
    if param.layout != torch.strided:
        raise TypeError(f"{name} has layout {param.layout}: must be torch.strided")
    if any(stride == 0 and size > 1 for stride, size in zip(param.stride(), param.shape, strict=True)):
        raise ValueError(f"{name} is expanded (strides {param.stride()}): several elements share memory")
