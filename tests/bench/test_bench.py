"""The benchmarks' machinery on small cases: what they measure is right, whatever the times are."""

import ctypes
import dataclasses
import json
import math
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("pytest_benchmark")

import torch

from bench import keys
from bench.__main__ import main
from bench.harness import machine, memory_groups, step_results
from bench.harness.cache_state import STATES, USED
from bench.harness.interleave import WARMUP, Measurement
from bench.harness.interleave import measure as measure_case
from bench.harness.plan import Plan
from bench.harness.training_steps import SHOWN, chosen
from bench.optimizers import bandwidth_roofline, baselines
from bench.optimizers.baselines import BASELINES
from bench.optimizers.candidates import ALWAYS, CPU_CANDIDATES, FIRST_STEPS, with_baselines
from bench.workloads import cases
from bench.workloads.cases import CASES

QUICK = ["radam-foreach", "adamw-fused", "optimi", "apex"]
"""Baselines that compile nothing, and one that serves no CPU."""


def test_gpt2_has_the_published_shapes():
    case = CASES["gpt2"]
    assert case.tensors == 148
    assert case.elements == 124_439_808
    assert case.step_bytes() == 28 * 124_439_808


def test_other_cases_have_the_size_of_their_titles():
    assert CASES["16M"].shapes == [(2**24,)]
    assert (CASES["small"].tensors, CASES["small"].elements) == (10_000, 640_000)


needs_compiler = pytest.mark.skipif(bandwidth_roofline.compiler_version() is None, reason="no C++ compiler")


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
    bandwidth_roofline.prepare(p, g, m, v, threads)()
    for found, wanted in zip((p, m, v, g), (*expected, untouched), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_ceiling_refuses_lists_that_do_not_match():
    p, g, m, v = lists([3, 4])
    with pytest.raises(ValueError, match="differ"):
        bandwidth_roofline.prepare(p, g[:1], m, v, 1)


@needs_compiler
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
def test_ceiling_runs_on_the_threads_of_torch():
    p, g, m, v = lists([100_000])
    add = bandwidth_roofline.prepare(p, g, m, v, torch.get_num_threads())
    torch.ones(1_000_000).add_(1.0)
    before = len(os.listdir("/proc/self/task"))
    add()
    assert len(os.listdir("/proc/self/task")) == before


def test_rounds_fit_the_budget_within_bounds():
    assert Plan(samples=3).count(100.0) == 3
    assert Plan(budget=40).count(2.0) == 20
    assert Plan(budget=40, least=7).count(30.0) == 7
    assert Plan(budget=40, most=60).count(0.01) == 60


def test_rounds_end_when_they_take_longer_than_planned():
    calls = []
    plan = Plan(budget=0.05, least=2, most=10**6, quiet_timeout=0, caches="used")
    found = measure_case(CASES["tiny"], [CPU_CANDIDATES["radam-single"]], plan, lambda *now: calls.append(now))
    assert len(found.seconds("radam-single")) >= 2
    steps = [(done, total) for doing, done, total in calls if doing == "rounds"]
    assert steps[-1][0] == steps[-1][1]


def test_waiting_for_quiet_ends(monkeypatch):
    assert 0.0 <= (machine.Load().others() or 0.0) <= 1.0
    now, others = [0.0], []
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.append(now.pop() + seconds))
    monkeypatch.setattr(machine, "time", clock)
    monkeypatch.setattr(machine, "Load", lambda: SimpleNamespace(others=others.pop))
    assert machine.wait_for_quiet(0.0) == 0.0
    others[:] = [0.5] * 9
    assert machine.wait_for_quiet(2.0, glance=0.25) == 2.0
    assert len(others) == 1
    for quiet in (0.05, None):  # None: where the system does not report other processes
        others[:] = [0.5, quiet, 0.5, 0.5]
        assert machine.wait_for_quiet(60.0, glance=0.25) == 0.75


GARBAGE = """
import torch
from bench.harness.machine import free_garbage

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS:")) * 1024

blocks, pins = [], []
for _ in range(400):
    blocks.append(torch.ones(2**18))
    pins.append(torch.ones(2**8))
del blocks
held = resident()
free_garbage()
print(held - resident())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="of glibc alone")
def test_a_memory_group_leaves_its_memory_to_the_next():
    # Blocks of one megabyte come from the heap, whatever the imports before them have allocated and freed.
    heap = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**17)}
    done = subprocess.run([sys.executable, "-c", GARBAGE], check=True, capture_output=True, text=True, env=heap)
    assert int(done.stdout) > 300 * 2**20  # unused memory that the process had kept


def test_ratios_are_taken_within_rounds_and_memory_groups():
    memory_groups = [{"a": [2.0, 30.0], "b": [1.0, 10.0]}, {"b": [7.0], "c": [14.0]}]
    found = Measurement(CASES["tiny"], "cold", memory_groups)
    assert found.ratios("a", "b") == [2.0, 3.0]
    assert found.ratios("c", "b") == [2.0]
    assert found.ratios("c", "a") == []
    assert found.seconds("b") == [1.0, 10.0, 7.0]
    assert found.candidates == ["a", "b", "c"]


def test_baselines_are_divided_into_memory_groups_where_memory_is_short(monkeypatch):
    case, everything = CASES["16M"], with_baselines(list(BASELINES))
    free = memory_groups.bytes_needed(case, everything) / 2**30 / 2
    monkeypatch.setattr(memory_groups, "available_gib", lambda: free)
    divided, left_out = memory_groups.divide(case, everything)
    assert not left_out
    assert len(divided) > 1
    for group in divided:
        assert [c.name for c in group if c.role != keys.BASELINE] == ALWAYS
        assert memory_groups.bytes_needed(case, group) <= free * 2**30
    assert [c.name for group in divided for c in group if c.role == keys.BASELINE] == list(BASELINES)

    constant = memory_groups.bytes_needed(case, with_baselines([])) / 2**30
    monkeypatch.setattr(memory_groups, "available_gib", lambda: (constant + 0.001) / (1 - memory_groups.SPARE))
    divided, left_out = memory_groups.divide(case, everything)
    assert [c.name for c in divided[0]] == ALWAYS
    assert left_out.keys() == BASELINES.keys()
    monkeypatch.setattr(memory_groups, "available_gib", lambda: 0.1)
    with pytest.raises(memory_groups.NotEnoughMemory, match="needs about"):
        memory_groups.divide(case, everything)


@pytest.mark.long
def test_a_case_in_memory_groups_is_one_measurement(monkeypatch):
    monkeypatch.setattr("bench.harness.cache_state.FLUSH_BYTES", 2**16)
    monkeypatch.setattr("bench.harness.interleave.divide", lambda *_: ([with_baselines([name]) for name in QUICK], {}))
    found = measure_case(CASES["tiny"], with_baselines(QUICK), Plan(samples=2, quiet_timeout=0))
    assert len(found.memory_groups) == len(QUICK)
    assert found.skipped["apex"] == "supports cuda only"
    assert found.skipped.keys() <= {"apex", "optimi"}  # which is not here where there are no baselines
    assert len(found.seconds("fused")) == 2 * len(QUICK)
    for name in QUICK:
        if name not in found.skipped:
            assert len(found.ratios(name, "fused")) == len(found.seconds(name)) == 2
    assert found.correctness.agrees is True


@pytest.mark.parametrize("caches", STATES)
def test_radams_agree_after_the_rounds(caches, monkeypatch):
    monkeypatch.setattr("bench.harness.cache_state.FLUSH_BYTES", 2**16)
    radams = with_baselines(["radam-foreach", "radam-single", "optimi"])
    calls = []
    plan = Plan(samples=3, quiet_timeout=0, caches=caches)
    found = measure_case(CASES["tiny"], radams, plan, lambda *now: calls.append(now))
    correctness = found.correctness
    assert correctness.agrees
    steps = FIRST_STEPS + (WARMUP + 3) * (1 + USED if caches == "used" else 1)
    assert correctness.steps == {
        c.name: steps for c in radams if c.name in found.candidates and c.role != keys.ROOFLINE
    }
    assert correctness.bits == {"fused": True, "fused-flat": True}
    assert all(len(group[name]) == 3 and min(group[name]) > 0 for group in found.memory_groups for name in group)
    total = (WARMUP + 3) * len(found.candidates)
    assert [now for now in calls if now[0] == "rounds"][-1] == ("rounds", total, total)
    assert {*found.candidates, *found.skipped} == {candidate.name for candidate in radams}


def test_a_wrong_update_does_not_agree(monkeypatch):
    monkeypatch.setattr("bench.harness.cache_state.FLUSH_BYTES", 2**16)
    impostor = dataclasses.replace(CPU_CANDIDATES["adamw-fused"], same_update=True)
    found = measure_case(CASES["tiny"], [impostor, CPU_CANDIDATES["radam-single"]], Plan(samples=1, quiet_timeout=0))
    assert found.correctness.agrees is False


def test_names_stand_for_cases_models_and_baselines():
    assert cases.chosen(["small", "16M"]) == ["16M", "small"]
    assert set(cases.chosen(["scaling"])) == {name for name, case in CASES.items() if case.series}
    assert "llama" not in cases.chosen(["default"])
    assert chosen(["default", "train-tiny"]) == ([*SHOWN, "train-tiny"], ["default"])
    assert chosen(["16M"]) == ([], ["16M"])
    assert baselines.chosen(["torch"]) == [name for name in BASELINES if "radam-" in name or name.endswith("-fused")]
    assert baselines.chosen(["none"]) == []
    with pytest.raises(ValueError, match="no case 'oh'"):
        cases.chosen(["oh"])
    with pytest.raises(ValueError, match="no baseline 'oh'"):
        baselines.chosen(["oh"])


@pytest.mark.long
def test_command_writes_its_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bench.harness.cache_state.FLUSH_BYTES", 2**16)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # pytest-benchmark stands still under xdist
    own = tmp_path / "pytest-benchmark.json"
    options = ["--rounds", "3", "--quiet-timeout", "0", "--out", str(tmp_path), f"--benchmark-json={own}"]
    command = ["--cases", "tiny", "elements-6400", "elements-64000", "train-tiny", "--baselines", *QUICK, *options]
    assert main(command) == 0, capsys.readouterr().out

    found = json.loads((tmp_path / "step.json").read_text())
    assert found["schema"] == step_results.SCHEMA
    assert found["threads"] == torch.get_num_threads()
    assert found["versions"]["torch"] == torch.__version__
    assert {"cpu", "cores", "caches"} <= found["machine"].keys()
    assert {"hash", "modified"} == found["commit"].keys()
    *_, case = found["cases"]
    assert [c["name"] for c in found["cases"]] == ["elements-6400", "elements-64000", "tiny"]
    assert (case["tensors"], case["elements"], case[keys.MEMORY_GROUPS], case["agrees"]) == (3, 1346, 1, True)
    assert case[keys.CANDIDATES].keys() | case[keys.SKIPPED].keys() == {*ALWAYS, *QUICK}
    assert case[keys.SKIPPED]["apex"] == "supports cuda only"
    for name, row in case[keys.CANDIDATES].items():
        ms = row["ms"]
        assert 0 < ms["min"] <= ms["q1"] <= ms["median"] <= ms["q3"] <= ms["max"]
        assert len(row["all_ms"]) == row["rounds"] == 3
        assert math.isclose(row["gb_per_s"], 28 * 1346 / ms["median"] / 1e6, rel_tol=1e-3)
        assert row["times_ours"].keys() == {
            ours for ours in step_results.OUR_CANDIDATES if ours in case[keys.CANDIDATES]
        }
        if name == keys.ROOFLINE:
            assert row["share_of_floor"]["median"] == 1.0

    # pytest-benchmark saw the same times.
    rows = json.loads(own.read_text())["benchmarks"]
    theirs = {row["params"]["candidate"]: row["stats"]["median"] for row in rows if row["params"].get("case") == "tiny"}
    assert theirs.keys() == case[keys.CANDIDATES].keys()
    for name, median in theirs.items():
        assert math.isclose(1e3 * median, case[keys.CANDIDATES][name]["ms"]["median"], rel_tol=1e-3)

    [trained] = found["training"]
    assert trained["agrees"] is True
    for row in trained["optimizers"].values():
        assert 0 < row["optimizer_share"]["min"] <= row["optimizer_share"]["max"] < 1
        assert len(row["losses"]) == FIRST_STEPS + 3

    text = (tmp_path / "step.md").read_text()
    assert "| torch RAdam, foreach |" in text
    for name in ("step.png", "roofline.png", "scaling.png"):
        assert f"({name})" in text
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert "FusedRAdam" in capsys.readouterr().out


def test_a_case_too_large_for_the_machine_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bench.harness.memory_groups.available_gib", lambda: 0.1)
    assert main(["--cases", "tiny", "--baselines", "none", "--rounds", "1", "--out", str(tmp_path)]) == 0
    assert "needs about" in capsys.readouterr().out


def test_kept_results_name_no_host_and_no_folder():
    private = {str(machine.ROOT), str(Path.home()), platform.node()} - {"", "/"}
    for path in (machine.ROOT / "bench" / "results").rglob("*.json"):
        text = path.read_text()
        assert not [name for name in private if len(name) > 5 and name in text]
