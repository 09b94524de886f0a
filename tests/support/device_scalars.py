"""The scalars operator over groups with given betas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from radam_fused.backends.ops import OPERATORS
from radam_fused.numerics.scalars import group_scalars
from radam_fused.options import GROUP_DEFAULTS

BETA2 = (0.9, 0.99, 0.999, 0.9995, 0.9999, 0.99999, 0.999999)
STEPS = range(1, 41)


def group(beta2: float, **options: Any) -> dict[str, Any]:
    return {"betas": (0.9, beta2), **options}


def device_scalars(groups: list[dict[str, Any]], steps: range, backend: str, device: torch.device) -> Iterator[Tensor]:
    """The result of the operator scalars in each step, one row per group."""
    table = torch.tensor([group_scalars(h := {**GROUP_DEFAULTS, **g}, h["lr"]) for g in groups], dtype=torch.float64)
    pairs = torch.tensor([(i, i) for i in range(len(groups))])
    counts = torch.full((len(groups),), steps.start - 1.0, device=device)
    tensors = table.to(device), pairs.to(device), torch.ones_like(counts), counts, counts.double()
    for t in steps:
        rows, norm = OPERATORS[backend].scalars(*tensors, None, None, 0.0, None, None)
        assert counts.tolist() == [float(t)] * len(groups)
        assert norm.item() == 0.0
        yield rows.cpu()
