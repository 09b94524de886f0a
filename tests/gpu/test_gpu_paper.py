"""The paper's experiments on a GPU: the whole pipeline by the same command, at sizes that take seconds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

pytest.importorskip("numpy", reason="make paper needs it")
pytest.importorskip("rich", reason="make paper needs it")
pytest.importorskip("matplotlib", reason="make paper needs it")
pytest.importorskip("sklearn", reason="make paper needs it")

import torch

from bench.paper import robustness
from bench.paper.__main__ import main, parse
from bench.paper.run import PARTS
from bench.paper.units import Store


def test_large_is_what_a_gpu_gets() -> None:
    options = parse([])
    assert (options.device, options.sizes.name) == ("cuda", "large")


def test_the_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CIFAR10", raising=False)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.max_memory_allocated()
    assert main(["--sizes", "tiny", "--results", str(tmp_path)]) == 0
    assert torch.cuda.max_memory_allocated() > before
    assert "Not run yet" not in (tmp_path / "paper.md").read_text()
    for part in PARTS:
        json.loads((tmp_path / f"{part}.json").read_text(), parse_constant=pytest.fail)
    # The same runs as on the CPU but for the last of four digits, and others than with another seed.
    records = Store(tmp_path).records("robustness")
    for name in ("text/radam/0.01/1", "deep/adam/0.01/1"):
        settings, result = records[name]["settings"], records[name]["result"]
        assert settings["device"] == "cuda"
        there, other = (robustness.run({**settings, "device": "cpu", "seed": seed}) for seed in (1, 0))
        assert math.isclose(result["curve"]["loss"][0], there["curve"]["loss"][0], rel_tol=4e-4)
        assert not math.isclose(result["curve"]["loss"][0], other["curve"]["loss"][0], rel_tol=4e-4)
