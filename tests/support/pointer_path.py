"""Whether steps take the pointer path, and parameters that they do so for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from radam_fused.step import run as launching
from radam_fused.step import together
from radam_fused.step.pointer_table import PointerTable

STEPS = 8
SHAPES = ((3,), (), (0,), (17, 5), (4097,), (2, 3, 4))


@pytest.fixture
def pointer_calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each attempt at a launch, whether it took the pointer path and stepped."""
    seen: list[bool] = []
    by_pointers, by_tensor_lists = PointerTable.step, launching._step_lists
    step_together = together.step_together

    def noting_pointers(*args: Any) -> bool:
        seen.append(by_pointers(*args))
        return seen[-1]

    def noting_lists(*args: Any) -> bool:
        stepped = by_tensor_lists(*args)
        seen.append(False)
        return stepped

    def noting_together(steps: list[tuple[Any, ...]], zero_grads: bool) -> bool:
        stepped = step_together(steps, zero_grads)
        seen.extend(len(arguments) == 3 for arguments in steps if stepped)
        return stepped

    monkeypatch.setattr(together, "step_together", noting_together)
    monkeypatch.setattr(PointerTable, "step", noting_pointers)
    monkeypatch.setattr(launching, "_step_lists", noting_lists)
    return seen


def parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
