"""The simulation of a large model: what is computed is what a step takes, and the model is the one it says."""

import json
import math
import re
import statistics

import pytest

from tests.support.paths import ROOT

pytest.importorskip("rich")

import torch
import torch.distributed as dist

from bench.studies import fsdp_scale


def test_llama_has_the_published_size():
    shapes = fsdp_scale.layer_shapes() * fsdp_scale.LAYERS + fsdp_scale.ENDS
    assert len(shapes) == 723
    assert sum(math.prod(shape) for shape in shapes) == 70_553_706_496


@pytest.mark.parametrize("rank", [0, 63])
def test_what_is_computed_is_what_a_step_takes(rank, monkeypatch):
    """A model of one layer, whose keys and values have fewer rows than there are ranks."""
    monkeypatch.setattr(fsdp_scale, "LAYERS", 1)
    monkeypatch.setattr(fsdp_scale, "KEYS", 40)
    found = fsdp_scale.simulated(64, rank)
    assert {key: found[key] for key in ("elements", "empty shards", "state bytes")} == fsdp_scale.computed(64, rank)
    assert found["empty shards"] == (2 if rank == 63 else 0)
    assert found["launches"] == {"squares": 1, "rows": 1, "step": 1}
    assert found["collectives"] == ["c10d::allreduce_"]
    assert not dist.is_initialized()


def test_measures_and_writes(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(fsdp_scale, "LAYERS", 1)
    threads = torch.get_num_threads()
    try:
        fsdp_scale.main(["--rounds", "3", "--world", "16", f"--out={tmp_path / 'new' / 'scale.json'}"])
    finally:
        torch.set_num_threads(threads)
    numbers = json.loads((tmp_path / "new" / "scale.json").read_text())
    assert {name: len(times) for name, times in numbers["host ms"].items()} == dict.fromkeys(fsdp_scale.CANDIDATES, 3)
    assert "torch.optim.AdamW(fused=True): " in capsys.readouterr().out


def committed_rows(found):
    """The rows of docs/scale.md that the committed numbers make."""
    first, last = found["simulated"]
    ms = {name: f"{statistics.median(times):.1f} ms" for name, times in found["host ms"].items()}
    rows = [
        f"a rank's elements, the first and the last | {first['elements']:,} and {last['elements']:,} |",
        f"bytes | {first['state bytes'] / 1e9:.3f} and {last['state bytes'] / 1e9:.3f} GB |",
        f"float32 | {8 * first['elements'] / 1e9:.3f} GB |",
        f"723 DTensors on a mesh of 512 | {ms['FusedRAdam']}; with `max_grad_norm` {ms['FusedRAdam, max_grad_norm']} |",
        f"AdamW(fused=True) | {ms['torch.optim.AdamW(fused=True)']} |",
        f"RAdam(foreach=True) | {ms['torch.optim.RAdam(foreach=True)']} |",
    ]
    lines = found["computed"]
    for top, end in zip(lines[::2], lines[1::2], strict=True):
        numbers = f"{top['elements']:,} | {end['elements']:,} | {end['empty shards']}"
        rows.append(f"| {top['world']:,} | {numbers} | {top['state bytes'] / 1e9:.2f} GB |")
    return rows


def test_the_page_has_the_committed_numbers():
    found = json.loads(fsdp_scale.DEFAULT_OUT.read_text())
    text = (ROOT / "docs" / "scale.md").read_text()
    rows = committed_rows(found)
    assert len(rows) == 12
    assert [row for row in rows if row not in text] == []
    ours, theirs = (found["host ms"][name] for name in ("FusedRAdam", "torch.optim.AdamW(fused=True)"))
    low, middle, high = statistics.quantiles(ours, n=4)
    assert f"(quartiles {low:.1f} and {high:.1f} ms" in text
    trainers = (ROOT / "docs" / "trainers.md").read_text()
    for number in (middle, statistics.median(theirs)):
        assert f" {number:.1f}" in trainers
    # Negative control: none of the rows is there with other numbers.
    other = [re.sub(r"\d(?=\D*$)", lambda digit: str((int(digit[0]) + 1) % 10), row) for row in rows]
    assert [row for row in other if row in text] == []


def test_the_page_says_what_a_step_does():
    """One launch and no collective, or with a norm three and one: what the simulation counted."""
    text = (ROOT / "docs" / "scale.md").read_text()
    assert "| 1; with `max_grad_norm` 3 (squares, rows, step) |" in text
    assert "| 0; with `max_grad_norm` 1, of 8 bytes |" in text
    for found in json.loads(fsdp_scale.DEFAULT_OUT.read_text())["simulated"]:
        assert found["launches"] == {"squares": 1, "rows": 1, "step": 1}
        assert len(found["collectives"]) == 1
        assert {key: found[key] for key in ("elements", "empty shards", "state bytes")} == fsdp_scale.computed(
            found["world"], found["rank"]
        )
