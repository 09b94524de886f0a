"""The experiment with huge pages changes where memory is allocated, and nothing else."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("pytest_benchmark")
pytest.importorskip("rich")

import torch

from bench.studies import huge_pages
from radam_fused.state import memory

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="Linux only")


def test_buffers_without_huge_pages_are_zeros_all_the_same():
    advice = memory.HUGE_PAGE
    with huge_pages.no_huge_pages():
        assert memory.HUGE_PAGE is None
        plain = memory.zeros((memory.LEAST // 4,), torch.float32, torch.device("cpu"))
    assert memory.HUGE_PAGE is advice
    advised = memory.zeros((memory.LEAST // 4,), torch.float32, torch.device("cpu"))
    assert torch.equal(plain, advised)
    assert not advised.any()


def test_the_command(monkeypatch, capsys):
    monkeypatch.setattr("bench.harness.cache_state.FLUSH_BYTES", 2**16)
    monkeypatch.setattr(memory, "LEAST", 2**14)
    assert huge_pages.main(["--elements", "30000", "--tensors", "3", "--rounds", "3"]) == 0
    said = capsys.readouterr().out
    assert "3 x 10000 elements" in said
    assert said.count("times as long") == len(huge_pages.LAYOUTS)
