"""The study of whole training steps: its statistics, its command, and that it trains."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from bench.report import readme
from bench.studies import whole_step


def test_the_interval_holds_the_median_nineteen_times_in_twenty() -> None:
    draw = random.Random(0)
    inside = 0
    for _ in range(1000):
        low, high = whole_step.interval([draw.expovariate(1.0) for _ in range(40)])
        inside += low <= 0.6931 <= high
    assert 940 <= inside <= 990
    low, high = whole_step.interval([draw.expovariate(1.0) for _ in range(4000)])
    assert high < 1.0  # the control: the mean of these is 1, and the interval does not hold it


def test_a_ratio_is_that_of_one_round() -> None:
    """A machine that slows down twofold halfway leaves ratios as they are, and moves no median of them."""
    slow = [1.0, 1.0, 2.0, 2.0]
    times = {
        key: [[0.0, 1.0 * f, 2.0 * f, (1.0 + place) * f] for f in slow]
        for place, key in enumerate(whole_step.CANDIDATES)
    }
    found = whole_step.summary(times)
    assert [row["ratio"]["median"] for row in found.values()] == [1.0, 1.25, 1.5, 1.75, 2.0, 2.25]
    assert all(row["ratio"]["q1"] == row["ratio"]["q3"] for row in found.values())
    assert found["fused"]["optimizer_share"]["median"] == 0.25
    assert found["fused"]["ms"]["q1"] < found["fused"]["ms"]["q3"]


@pytest.mark.long
def test_the_command(tmp_path: Path, capsys) -> None:
    out = tmp_path / "whole.json"
    assert whole_step.main(["--models", "train-tiny", "--processes", "1", "--rounds", "2", "--out", str(out)]) == 0
    model = json.loads(out.read_text())["models"]["train-tiny"]
    assert list(model["candidates"]) == list(whole_step.CANDIDATES)
    assert model["rounds"] == 2
    assert capsys.readouterr().out.count("train-tiny: ") == len(whole_step.CANDIDATES)
    text = "\n".join(readme.whole(json.loads(out.read_text())))
    assert text.count("| FusedRAdam") == 4
