"""Layouts, gradients and comparisons that several test files use."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SIZES = (0, 1, 3, 255, 256, 257, 4097, 50_021)

INTEGER = {
    torch.float32: torch.int32,
    torch.float64: torch.int64,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


def vector(length: int, dtype: torch.dtype) -> Tensor:
    return torch.zeros(length, dtype=dtype)


def misaligned(length: int, dtype: torch.dtype) -> Tensor:
    """A view whose first element is not at a multiple of 16 bytes."""
    return torch.zeros(length + 1, dtype=dtype)[1:]


BACKENDS = ("cpu", "triton", "reference")
"""Every backend that runs on CPU tensors."""

LAYOUTS: dict[str, Callable[[torch.dtype], Tensor]] = {
    **{f"size_{n}": functools.partial(vector, n) for n in SIZES},
    "0-d": lambda dtype: torch.zeros((), dtype=dtype),
    "matrix": lambda dtype: torch.zeros(33, 17, dtype=dtype),
    "transposed": lambda dtype: torch.zeros(31, 40, dtype=dtype).t(),
    "channels_last": lambda dtype: torch.zeros(4, 6, 5, 7, dtype=dtype).to(memory_format=torch.channels_last),
    "misaligned": lambda dtype: misaligned(1030, dtype),
    "strided": lambda dtype: torch.zeros(700, 3, dtype=dtype)[:, 1],
}
"""Empty parameters by name, each a view or tensor to be filled."""


def filled(layout: str, dtype: torch.dtype, seed: int) -> Tensor:
    """A parameter of that layout with normal values; the same for the same seed, wherever it is stored."""
    generator = torch.Generator().manual_seed(seed)
    empty = LAYOUTS[layout](dtype)
    return empty.copy_(torch.randn(empty.shape, generator=generator, dtype=torch.float64))


@functools.cache
def noise(length: int) -> Tensor:
    """Values of very different magnitudes, with zeros among them."""
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(length, generator=generator, dtype=torch.float64)
    scale = 10.0 ** torch.randint(-4, 2, (length,), generator=generator).double()
    return value * scale * (torch.rand(length, generator=generator) > 0.05)


def gradients(shapes: list[torch.Size], dtype: torch.dtype, seed: int) -> list[Tensor]:
    """Row-major gradients, the same for the same seed: stretches of `noise`, each starting elsewhere."""
    result = []
    for k, shape in enumerate(shapes):
        start = (7919 * seed + 104_729 * k) % 300_007
        result.append(noise(500_000)[start : start + shape.numel()].to(dtype).reshape(shape))
    return result


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bits as integers, with every NaN made the same: hardware is free in the payload."""
    if not tensor.is_floating_point():
        return tensor
    canonical = torch.where(tensor.isnan(), torch.full_like(tensor, float("nan")), tensor)
    return canonical.contiguous().view(INTEGER[tensor.dtype])


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a.detach()), bits(b.detach()))


def all_same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(same_bits(x, y) for x, y in zip(a, b, strict=True))


def by_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def params_of(opt: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [p for group in opt.param_groups for p in group["params"]]


def one_ulp_up(tensor: Tensor, index: int) -> None:
    """Changes one element of a contiguous tensor by one unit in the last place, in place."""
    tensor.detach().view(-1).view(INTEGER[tensor.dtype])[index] += 1
