"""The bytes that each state format takes, measured on the tensors, and the table of them in docs/options.md."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from radam_fused import FusedRAdam
from tests.support.paths import ROOT


def state_bytes(opt: FusedRAdam) -> int:
    """What the state's tensors hold, the flat buffers behind them counted once and whole."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for entry in opt.state.values()
        for name, tensor in entry.items()
        if name != "step"
    }
    return sum(storages.values())


SIZES = {
    "fp32": ({}, 8.0),
    "bf16": ({"state_dtype": torch.bfloat16}, 4.0),
    "fp16": ({"state_dtype": torch.float16}, 4.0),
    "int8": ({"state_dtype": torch.int8}, 2.03125),
    "int8_split": ({"state_dtype": torch.int8, "master_weights": "split"}, 4.03125),
    "int8_kahan": ({"state_dtype": torch.int8, "master_weights": "kahan"}, 4.03125),
    "int8_fp32": ({"state_dtype": torch.int8, "master_weights": "fp32"}, 6.03125),
}


@pytest.mark.parametrize(("options", "expected"), SIZES.values(), ids=list(SIZES))
def test_bytes_a_parameter(options: dict, expected: float) -> None:
    params = [nn.Parameter(torch.zeros(1024, 1024, dtype=torch.bfloat16))]
    opt = FusedRAdam(params, **options)
    params[0].grad = torch.ones_like(params[0])
    opt.step()
    assert state_bytes(opt) / params[0].numel() == expected


PAGE = (ROOT / "docs" / "options.md").read_text()
MEMORY = re.findall(r"^\| (float32|bfloat16) \| (?:`(.*?)`)?[^|]*\| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)
"""Dtype of the parameters, options, bytes of state and of all."""


@pytest.mark.parametrize(("dtype", "options", "state", "whole"), MEMORY, ids=lambda cell: str(cell).replace(" ", ""))
def test_the_page_s_memory(dtype: str, options: str, state: str, whole: str) -> None:
    """Each format's bytes in the page's table are those of its tensors."""
    p = nn.Parameter(torch.zeros(1024, 1024, dtype=getattr(torch, dtype)))
    p.grad = torch.ones_like(p)
    opt = FusedRAdam([p], **eval(f"dict({options})", {"torch": torch}))
    opt.step()
    found = state_bytes(opt) / p.numel()
    assert f"{found:.2f}" == f"{float(state):.2f}"
    assert f"{found + 2 * p.dtype.itemsize:.2f}" == f"{float(whole):.2f}"


def test_the_page_s_memory_is_found() -> None:
    """The negative control: a table that is not read, or whose rows are all alike, would pass."""
    assert len(MEMORY) >= 7
    assert len({row[2] for row in MEMORY}) >= 5


def test_small_tensors_keep_float32_moments() -> None:
    params = [nn.Parameter(torch.zeros(4095)), nn.Parameter(torch.zeros(4096))]
    opt = FusedRAdam(params, state_dtype=torch.int8)
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    assert opt.state[params[0]]["exp_avg"].dtype == torch.float32
    assert opt.state[params[1]]["exp_avg_octave_code"].dtype == torch.int8
