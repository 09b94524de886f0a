"""Whether steps take the pointer path, and parameters that they do so for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from radam_fused.step import run as launching
from radam_fused.step.launch import Launch

STEPS = 8
SHAPES = ((3,), (), (0,), (17, 5), (4097,), (2, 3, 4))


@pytest.fixture
def pointer_calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each attempt at a launch, whether it took the pointer path and stepped."""
    seen: list[bool] = []
    call = launching._call

    def noting(launch: Launch, *rest: Any) -> bool:
        stepped = call(launch, *rest)
        seen.append(stepped and launch.addresses is not None)
        return stepped

    monkeypatch.setattr(launching, "_call", noting)
    return seen


def parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
