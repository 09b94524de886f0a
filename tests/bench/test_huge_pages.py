"""The experiment with huge pages changes where memory lies, and nothing else."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("pytest_benchmark")

import torch

from bench import huge_pages

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="Linux only")


def test_only_large_tensors_are_advised(monkeypatch):
    advised = []
    monkeypatch.setattr(huge_pages, "advise", lambda tensor: advised.append(tensor.numel()))
    plain = torch.zeros
    with huge_pages.advised_zeros():
        large = torch.zeros(huge_pages.LEAST // 4, dtype=torch.float32)
        small = torch.zeros(huge_pages.LEAST // 4 - 1, dtype=torch.float32)
    assert torch.zeros is plain
    assert advised == [large.numel()]
    assert not large.any()
    assert not small.any()


def test_a_refusal_is_an_error():
    class Unmapped:
        def data_ptr(self):
            return 1 << 46

        def numel(self):
            return 1 << 20

        def element_size(self):
            return 4

    with pytest.raises(OSError, match="madvise"):
        huge_pages.advise(Unmapped())


def test_the_command(monkeypatch, capsys):
    monkeypatch.setattr("bench.caches.FLUSH_BYTES", 2**16)
    monkeypatch.setattr(huge_pages, "LEAST", 2**14)
    assert huge_pages.main(["--elements", "30000", "--tensors", "3", "--rounds", "3"]) == 0
    said = capsys.readouterr().out
    assert "3 x 10000 elements" in said
    assert said.count("times as long") == len(huge_pages.FORMS)
