"""State in the host's memory under FSDP2: the counted bytes, the watched memory and the table."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.studies import fsdp_host_state
from bench.studies.fsdp_host_state import Traffic
from radam_fused import FusedRAdam

ELEMENTS = 4096


def bytes_per_element(make: Any, dtype: torch.dtype = torch.float32, **options: Any) -> float:
    param = torch.nn.Parameter(torch.ones(ELEMENTS, dtype=dtype))
    optimizer = make([param], **options)
    for _ in range(7):
        param.grad = torch.ones_like(param)
        optimizer.step()
    with Traffic() as counted:
        optimizer.step()
    return counted.bytes / ELEMENTS


def test_a_step_moves_each_byte_once() -> None:
    """Parameter and moments read and written, the gradient read; the rest is scalars."""
    assert 28 <= bytes_per_element(FusedRAdam, backend="cpu") < 28.1
    assert 26 <= bytes_per_element(FusedRAdam, torch.bfloat16, backend="cpu", master_weights="split") < 26.1
    assert 28 <= bytes_per_element(torch.optim.AdamW, fused=True) < 28.1


def test_a_step_of_several_operators_moves_more() -> None:
    """The negative control."""
    assert bytes_per_element(torch.optim.AdamW, foreach=True) > 60


def test_growth_is_seen() -> None:
    class Leaks:
        def __init__(self) -> None:
            self.kept: list[mmap.mmap] = []

        def step(self) -> None:
            self.kept.append(mmap.mmap(-1, 100_000, flags=mmap.MAP_PRIVATE))  # never memory that malloc holds already
            self.kept[-1].write(b"x" * 100_000)

    class Keeps:
        def step(self) -> None:
            pass

    leaking: Any = Leaks()
    keeping: Any = Keeps()
    assert fsdp_host_state._growth(leaking, 200) > 15_000_000
    assert fsdp_host_state._growth(keeping, 200) < 5_000_000


@pytest.mark.long
def test_two_ranks_write_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- host state -->\nold\n<!-- /host state -->\nafter\n")
    monkeypatch.setattr(fsdp_host_state, "available", lambda: ["FusedRAdam", "torch AdamW, fused"])
    given = ["--ranks", "2", "--layers", "1", "--width", "16", "--rounds", "3", "--steps", "10"]
    fsdp_host_state.main([*given, "--results", str(tmp_path / "found.json"), "--report", str(page)])
    text = page.read_text()
    assert text.startswith("before\n<!-- host state -->\n| 2 ranks of one thread |")
    assert text.endswith("<!-- /host state -->\nafter\n")
    assert text.count("\n| FusedRAdam | ") == text.count("\n| torch AdamW, fused | ") == 1
    page.write_text("no place")
    with pytest.raises(ValueError, match="no place for 'host state'"):
        fsdp_host_state.replace_between(page, "host state", "text")
