"""The words in which options that do not fit each other are refused, and which values are the same."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from radam_fused import FusedRAdam
from radam_fused.options import check_offload

OFFLOAD: list[tuple[tuple[Any, ...], str]] = [
    (
        ("auto", False, False, torch.int8),
        "state_dtype = torch.int8: must be torch.float32, bfloat16 or float16 with offload=True, whose chunks are no "
        "whole blocks of codes",
    ),
    (
        ("reference", False, False, torch.float32),
        "backend = 'reference' (the argument's or RADAM_FUSED_BACKEND's): must be 'auto' or 'cpu' with offload=True, "
        "which computes the step on the host",
    ),
    (
        ("cpu", True, False, torch.float32),
        "flatten = True: must be False with offload=True, which stages parameters and gradients in large chunks "
        "anyway; flat buffers would only take memory on the device",
    ),
    (
        ("cpu", False, True, torch.float32),
        "capturable = True: must be False with offload=True, as a CUDA graph cannot capture the host",
    ),
]


@pytest.mark.parametrize(("arguments", "words"), OFFLOAD, ids=["dtype", "backend", "flatten", "capturable"])
def test_what_offload_refuses(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        check_offload(*arguments)


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_what_offload_allows(backend: str) -> None:
    check_offload(backend, False, False, torch.bfloat16)


def made(value: Any) -> FusedRAdam:
    """With a group that names an option of the whole optimizer, as some wrappers' groups do."""
    group = {"params": [nn.Parameter(torch.ones(3))], "max_grad_norm": value}
    return FusedRAdam([group], max_grad_norm=1.0)


@pytest.mark.parametrize("value", [1.0, 1], ids=["float", "int"])
def test_a_group_may_repeat_the_optimizers_value(value: float) -> None:
    made(value)


@pytest.mark.parametrize("value", [2.0, 2, True, "1.0", None], ids=repr)
def test_a_group_may_not_have_another(value: Any) -> None:
    words = f"param_groups[0]: max_grad_norm = {value!r}: is an option of the whole optimizer, not of a group"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        made(value)
