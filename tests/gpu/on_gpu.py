"""The CPU tests' parameters, gradients and training, on a GPU: the same values in the same layouts."""

from __future__ import annotations

import re
from unittest.mock import patch

import torch
from torch import Tensor

from radam_fused import FusedRAdam
from tests.kernels import test_bits
from tests.support import helpers
from tests.support.paths import ROOT

GPU = "cuda"
ENTRIES = int(re.search(r"kEntries = (\d+)", (ROOT / "csrc/cuda/table_cache.h").read_text())[1])
"""Tables that the `cuda` backend keeps, a launch each: one launch more drops the least recent."""


def filled(layout: str, dtype: torch.dtype, seed: int) -> Tensor:
    """`helpers.filled` on the GPU: strides and misalignment are made there, the values on the CPU."""
    with torch.device(GPU):
        empty = helpers.LAYOUTS[layout](dtype)
    return empty.copy_(helpers.filled(layout, dtype, seed))


def gradients(shapes: list[torch.Size], dtype: torch.dtype, seed: int) -> list[Tensor]:
    return [grad.to(GPU) for grad in helpers.gradients(shapes, dtype, seed)]


def train(backend: str, dtype: torch.dtype, grad_dtype: torch.dtype, **options: object) -> tuple[list, list]:
    """`test_bits.train` on the GPU; parameters and moments come back on the CPU."""
    with patch.object(test_bits, "filled", filled), patch.object(test_bits, "gradients", gradients):
        params, moments = test_bits.train(backend, dtype, grad_dtype, **options)
    assert all(tensor.is_cuda for tensor in params + moments)
    return [p.cpu() for p in params], [m.cpu() for m in moments]


def model(
    shapes: list[tuple[int, ...]],
    backend: str,
    dtype: torch.dtype = torch.float32,
    groups: int = 1,
    device: str = GPU,
    **options: object,
) -> tuple[list[Tensor], FusedRAdam]:
    """Parameters with gradients, dealt out over groups, and their optimizer; the same values on every device."""
    generator = torch.Generator().manual_seed(0)
    params = []
    for shape in shapes:
        values = torch.randn(2, *shape, generator=generator).to(dtype)
        params.append(torch.nn.Parameter(values[0].to(device, copy=True)))
        params[-1].grad = values[1].to(device, copy=True)
    dealt = [{"params": params[k::groups], "lr": 0.01 * (k + 1)} for k in range(groups)]
    return params, FusedRAdam(dealt, backend=backend, **options)


def same(params: list[Tensor], others: list[Tensor]) -> bool:
    return all(helpers.same_bits(a.detach().cpu(), b.detach().cpu()) for a, b in zip(params, others, strict=True))
