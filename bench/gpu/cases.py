"""The work of the GPU benchmarks: `bench.workloads.cases` in fp32 and in bf16.

bf16 means 16-bit parameters and gradients. The moments are the optimizer's affair: fp32 here, bf16 in torch.optim,
which then moves fewer bytes and rounds most updates of exp_avg_sq away.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.workloads.cases import CASES, Case

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHOWN = ["256M", "llama", "small", "gpt2", "resnet50"]
"""The default set, the most telling first: the time of a run may end before its cases."""


def pass_bytes(case: Case, dtype: torch.dtype, moment_dtype: torch.dtype) -> int:
    """Bytes that one pass has to move: reads p, g, m and v, writes p, m and v."""
    return (3 * dtype.itemsize + 4 * moment_dtype.itemsize) * case.elements


def values(case: Case, dtype: torch.dtype, device: str, scale: float, seed: int) -> list[Tensor]:
    """One normal tensor a shape, each with memory of its own as a model's; the same for the same seed."""
    generator = torch.Generator(device).manual_seed(seed)
    return [
        torch.empty(shape, dtype=dtype, device=device).normal_(0.0, scale, generator=generator) for shape in case.shapes
    ]


__all__ = ["CASES", "DTYPES", "SHOWN", "pass_bytes", "values"]
