"""The simulation of a large model: what is computed is what a step takes, and the model is the one it says."""

import json
import math

import pytest

pytest.importorskip("rich")

import torch
import torch.distributed as dist

from bench import scale


def test_llama_has_the_published_size():
    shapes = scale.layer_shapes() * scale.LAYERS + scale.ENDS
    assert len(shapes) == 723
    assert sum(math.prod(shape) for shape in shapes) == 70_553_706_496


@pytest.mark.parametrize("rank", [0, 63])
def test_what_is_computed_is_what_a_step_takes(rank, monkeypatch):
    """A model of one layer, whose keys and values have fewer rows than there are ranks."""
    monkeypatch.setattr(scale, "LAYERS", 1)
    monkeypatch.setattr(scale, "KEYS", 40)
    found = scale.simulated(64, rank)
    assert {key: found[key] for key in ("elements", "empty shards", "state bytes")} == scale.computed(64, rank)
    assert found["empty shards"] == (2 if rank == 63 else 0)
    assert found["launches"] == {"squares": 1, "rows": 1, "step": 1}
    assert found["collectives"] == ["c10d::allreduce_"]
    assert not dist.is_initialized()


def test_measures_and_writes(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(scale, "LAYERS", 1)
    threads = torch.get_num_threads()
    try:
        scale.main(["--rounds", "3", "--world", "16", f"--out={tmp_path / 'new' / 'scale.json'}"])
    finally:
        torch.set_num_threads(threads)
    numbers = json.loads((tmp_path / "new" / "scale.json").read_text())
    assert {name: len(times) for name, times in numbers["host ms"].items()} == dict.fromkeys(scale.CONTESTANTS, 3)
    assert "torch.optim.AdamW(fused=True): " in capsys.readouterr().out
