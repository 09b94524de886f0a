"""The benchmarks' machinery on small cases: what they measure is right, whatever the times are."""

import json
import math
import os
import platform
from pathlib import Path

import pytest

pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("pytest_benchmark")

import torch

from bench import ceiling, machine, report
from bench.__main__ import main
from bench.caches import STATES
from bench.cases import CASES
from bench.measure import WARMUP, Agreement, Measurement, Plan, measure
from bench.peers import CONTESTANTS


def test_gpt2_has_the_published_shapes():
    case = CASES["gpt2"]
    assert case.tensors == 148
    assert case.elements == 124_439_808
    assert case.step_bytes == 28 * 124_439_808


def test_other_cases_have_the_size_of_their_titles():
    assert CASES["16M"].shapes == [(2**24,)]
    assert (CASES["small"].tensors, CASES["small"].elements) == (10_000, 640_000)


needs_compiler = pytest.mark.skipif(ceiling.compiler_version() is None, reason="no C++ compiler")


def lists(lengths):
    """p, g, m, v as lists of tensors of these lengths, all different."""
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(n, generator=generator) for n in lengths] for _ in range(4)]


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("lengths", [[100_003], [0, 1, 15, 16, 17, 4096, 0, 5], [64] * 50], ids=["one", "odd", "many"])
def test_ceiling_adds_g_to_each_of_the_others(lengths, threads):
    p, g, m, v = lists(lengths)
    expected = [[a + b for a, b in zip(values, g, strict=True)] for values in (p, m, v)]
    untouched = [value.clone() for value in g]
    ceiling.prepare(p, g, m, v, threads)()
    for found, wanted in zip((p, m, v, g), (*expected, untouched), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_ceiling_refuses_lists_that_do_not_match():
    p, g, m, v = lists([3, 4])
    with pytest.raises(ValueError, match="differ"):
        ceiling.prepare(p, g[:1], m, v, 1)


@needs_compiler
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
def test_ceiling_runs_on_the_threads_of_torch():
    p, g, m, v = lists([100_000])
    add = ceiling.prepare(p, g, m, v, torch.get_num_threads())
    torch.ones(1_000_000).add_(1.0)
    before = len(os.listdir("/proc/self/task"))
    add()
    assert len(os.listdir("/proc/self/task")) == before


def test_rounds_fit_the_budget_within_bounds():
    assert Plan(rounds=3).rounds_for(100.0) == 3
    assert Plan(budget=40).rounds_for(2.0) == 20
    assert Plan(budget=40, least=7).rounds_for(30.0) == 7
    assert Plan(budget=40, most=60).rounds_for(0.01) == 60


def test_rounds_end_when_they_take_longer_than_planned():
    calls = []
    plan = Plan(budget=0.05, least=2, most=10**6, patience=0, caches="warm")
    found = measure(CASES["tiny"], [CONTESTANTS["radam-single"]], plan, lambda *now: calls.append(now))
    assert len(found.seconds["radam-single"]) >= 2
    assert calls[-1][0] == calls[-1][1]


def test_waiting_for_quiet_ends():
    assert machine.wait_for_quiet(0.0) < 0.01
    assert machine.wait_for_quiet(0.2, calm=-1.0) >= 0.2
    assert machine.wait_for_quiet(60.0, calm=2.0) < 1.0


def test_ratios_are_taken_within_rounds():
    found = Measurement(CASES["tiny"], "cold", {"a": [2.0, 30.0], "b": [1.0, 10.0]}, {}, Agreement(None, 0), None)
    assert found.ratios("a", "b") == [2.0, 3.0]


def test_agreement_notices_parameters_that_differ_and_that_stand_still():
    assert Agreement("radam-single", 9, moved=1e-2, differences={"fused": 1e-8}).agrees is True
    assert Agreement("radam-single", 9, moved=1e-2, differences={"fused": 1e-5}).agrees is False
    assert Agreement("radam-single", 9, moved=1e-7, differences={"fused": 0.0}).agrees is False
    assert Agreement(None, 9).agrees is None


@pytest.mark.parametrize("caches", STATES)
def test_radams_agree_after_the_rounds(caches, monkeypatch):
    monkeypatch.setattr("bench.caches.FLUSH_BYTES", 2**16)
    radams = [contestant for contestant in CONTESTANTS.values() if contestant.radam]
    calls = []
    plan = Plan(rounds=3, patience=0, caches=caches)
    found = measure(CASES["tiny"], radams, plan, lambda done, total: calls.append((done, total)))
    assert found.agreement.agrees
    assert found.agreement.steps == (WARMUP + 3) * (2 if caches == "used" else 1)
    assert all(len(seconds) == 3 and min(seconds) > 0 for seconds in found.seconds.values())
    total = (WARMUP + 3) * len(found.seconds)
    assert calls[-1] == (total, total)
    assert set(found.seconds) | set(found.absent) == {contestant.name for contestant in radams}


def test_a_wrong_update_does_not_agree(monkeypatch):
    monkeypatch.setattr("bench.caches.FLUSH_BYTES", 2**16)
    adamw = CONTESTANTS["adamw-fused"]
    impostor = type(adamw)(adamw.name, adamw.label, adamw.role, adamw.build, adamw.arrays, radam=True)
    found = measure(CASES["tiny"], [impostor, CONTESTANTS["radam-single"]], Plan(rounds=1, patience=0))
    assert found.agreement.agrees is False


def test_command_writes_its_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bench.caches.FLUSH_BYTES", 2**16)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # pytest-benchmark stands still under xdist
    own = tmp_path / "pytest-benchmark.json"
    command = ["--cases", "tiny", "--rounds", "3", "--patience", "0", "--out", str(tmp_path), f"--benchmark-json={own}"]
    assert main(command) == 0, capsys.readouterr().out

    found = json.loads((tmp_path / "step.json").read_text())
    assert found["schema"] == report.SCHEMA
    assert found["threads"] == torch.get_num_threads()
    assert found["versions"]["torch"] == torch.__version__
    assert {"cpu", "cores", "caches"} <= found["machine"].keys()
    assert {"hash", "modified"} == found["commit"].keys()
    [case] = found["cases"]
    assert (case["tensors"], case["elements"], case["rounds"]) == (3, 1346, 3)
    assert case["agreement"]["agrees"] is True
    assert case["contestants"].keys() | case["absent"].keys() == CONTESTANTS.keys()
    for name, row in case["contestants"].items():
        ms = row["ms"]
        assert 0 < ms["min"] <= ms["q1"] <= ms["median"] <= ms["q3"] <= ms["max"]
        assert len(row["all_ms"]) == 3
        assert math.isclose(row["gb_per_s"], 28 * 1346 / ms["median"] / 1e6, rel_tol=1e-3)
        assert row["times_ours"].keys() == {ours for ours in report.OURS if ours in case["contestants"]}
        if name == "ceiling":
            assert row["share_of_ceiling"]["median"] == 1.0

    # pytest-benchmark saw the same times.
    rows = json.loads(own.read_text())["benchmarks"]
    theirs = {row["params"]["contestant"]: row["stats"]["median"] for row in rows}
    assert theirs.keys() == case["contestants"].keys()
    for name, median in theirs.items():
        assert math.isclose(1e3 * median, case["contestants"][name]["ms"]["median"], rel_tol=1e-3)

    assert "| torch RAdam, foreach |" in (tmp_path / "step.md").read_text()
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")
    assert "FusedRAdam" in capsys.readouterr().out


def test_a_case_too_large_for_the_machine_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bench.measure.available_gib", lambda: 0.1)
    assert main(["--cases", "tiny", "--rounds", "1", "--out", str(tmp_path)]) == 0
    assert "needs about" in capsys.readouterr().out


def test_kept_results_name_no_host_and_no_folder():
    private = {str(machine.ROOT), str(Path.home()), platform.node()} - {"", "/"}
    for path in (machine.ROOT / "bench" / "results").rglob("*.json"):
        text = path.read_text()
        assert not [name for name in private if len(name) > 5 and name in text]
