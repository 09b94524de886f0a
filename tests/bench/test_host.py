"""`python -m bench.studies.host_overhead`: what it saves, and what it makes of times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import keys
from bench.studies import host_overhead


@pytest.mark.long
def test_a_run_saves_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host_overhead.main(["--rounds", "2", "--tensors", "2", "20", "--results", str(tmp_path / "host.json")])
    found = json.loads((tmp_path / "host.json").read_text())
    assert [(row["tensors"], row["caches"]) for row in found["rows"]] == [(2, "cold"), (2, "warm"), (20, "warm")]
    for row in found["rows"]:
        assert row["us"].keys() == host_overhead.CANDIDATES.keys()
        assert all(low <= row["us"][name] <= high for name, (low, high) in row["quartiles"].items())
    assert "torch AdamW, fused" in capsys.readouterr().out
    assert found["claims"] == host_overhead.targets(found["rows"])


def row(tensors: int, flat: float, ratio: float) -> dict[str, Any]:
    return {"tensors": tensors, "us": {host_overhead.FLAT: flat}, keys.BASELINE_OVER_OURS: ratio}


@pytest.mark.parametrize(
    ("cold", "ratio", "flat", "kept"),
    [
        (2.0, 15.0, 500.0, ["PASS", "PASS", "PASS"]),
        (2.0, 14.9, 500.0, ["MISS", "PASS", "PASS"]),
        (0.9, 15.0, 500.0, ["PASS", "MISS", "PASS"]),
        (2.0, 15.0, 2000.0, ["PASS", "PASS", "MISS"]),
    ],
    ids=["kept", "slower", "slower_cold", "a_time_a_tensor"],
)
def test_claims(cold: float, ratio: float, flat: float, kept: list[str]) -> None:
    rows = [row(10, 60.0, cold), row(10, 20.0, 1.0), row(10_000, flat, ratio)]
    assert [target[:4] for target in host_overhead.targets(rows)] == kept


@pytest.mark.long
def test_the_triton_backend_beside_the_cpu_backend(tmp_path: Path) -> None:
    """No kernel is run: what is timed is the host's part."""
    path = tmp_path / "host.json"
    host_overhead.main(["--triton", "--rounds", "2", "--tensors", "2", "20", "--results", str(path)])
    found = json.loads(path.read_text())
    assert [(row["tensors"], row["caches"]) for row in found["rows"]] == [
        (2, "cold"),
        (2, "warm"),
        (20, "warm"),
        (2, "alone"),
        (20, "alone"),
    ]
    for row in found["rows"]:
        assert row["us"].keys() == {*host_overhead.TRITON_BESIDE, *host_overhead.TRITON}
    assert found["claims"] == host_overhead.triton_targets(found["rows"])
    assert len(found["claims"]) == 6


def test_the_limits_of_the_triton_backend() -> None:
    """The negative control: one tensor's time more, and a target is missed."""
    names = [*host_overhead.TRITON]

    def missed(us: float) -> int:
        row = {"tensors": 10, "caches": "alone", "least": dict.fromkeys(names, us)}
        return sum(line.startswith("MISS") for line in host_overhead.triton_targets([row]))

    assert [missed(39.9), missed(42.9), missed(43.1)] == [0, 2, 4]
