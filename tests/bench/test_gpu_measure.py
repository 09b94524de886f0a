"""The measuring itself, with the CPU in place of a GPU."""

from __future__ import annotations

import json
import subprocess
import time

import pytest
import torch

from bench import keys
from bench.gpu import check, gpu_info, installed, sanitizer_workload, step, timing, traces, tune
from bench.gpu.clock import HostClock
from bench.harness.measure import quartiles
from bench.harness.plan import Plan
from bench.optimizers import baselines, candidates
from bench.optimizers.baselines import Skipped
from bench.studies import state_formats
from bench.workloads.cases import CASES, DTYPES, GPU_DEFAULT

TINY = CASES["tiny"]
QUICK = Plan(budget=1e-6, least=3)
HERE = {
    candidate.name: candidate
    for candidate in (
        candidates.on_gpu("cpu", False),
        candidates.on_gpu("cpu", True),
        candidates.on_gpu("reference", False),
        candidates.GPU_CANDIDATES["radam-foreach"],
        candidates.GPU_CANDIDATES["adamw-fused"],
        candidates.GPU_CANDIDATES["apex"],
    )
}


@pytest.mark.parametrize(
    ("name", "tensors", "elements"),
    [
        ("256M", 1, 2**28),
        ("gpt2", 148, 124_439_808),
        ("llama", 146, 1_235_814_400),
        ("resnet50", 161, 25_557_032),
        ("small", 10_000, 640_000),
    ],
)
def test_cases_are_the_models(name, tensors, elements):
    assert (CASES[name].tensors, CASES[name].elements) == (tensors, elements)


def test_bytes_of_a_step():
    assert TINY.step_bytes() == 28 * TINY.elements
    assert TINY.step_bytes(torch.bfloat16) == 22 * TINY.elements
    assert TINY.step_bytes(torch.bfloat16, state_bytes=4) == 14 * TINY.elements
    of = {name: c.step_bytes(TINY, torch.bfloat16) / TINY.elements for name, c in candidates.GPU_CANDIDATES.items()}
    assert (of["cuda"], of["apex"], of["adamw-fused"], of["bitsandbytes"]) == (22, 22, 14, 10)


def test_values_repeat():
    a, b = (TINY.values(0.5, 3, torch.bfloat16) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert [tuple(x.shape) for x in a] == TINY.shapes


def test_quartiles():
    assert timing.summary([], 1.0) is None
    assert timing.summary([2.0], 1.0) == {"min": 2.0, "q1": 2.0, "median": 2.0, "q3": 2.0, "max": 2.0, "samples": 1}
    assert quartiles([1, 2, 3, 4, 5], 1e3) == {"min": 1e3, "q1": 1750.0, "median": 3e3, "q3": 4250.0, "max": 5e3}


@pytest.mark.parametrize("count", range(1, 14))
def test_quartiles_are_those_of_pytest_benchmark(count):
    stats = pytest.importorskip("pytest_benchmark.stats").Stats()
    values = torch.rand(count, generator=torch.Generator().manual_seed(count)).tolist()
    for value in values:
        stats.update(value)
    found = quartiles(values, digits=12)
    assert all(found[name] == pytest.approx(getattr(stats, name), rel=1e-11) for name in found)


def test_counts_fit_the_time():
    assert Plan(1.0, 5, 50).count(0.1) == 10
    assert Plan(1.0, 5, 50).count(10.0) == 5
    assert Plan(1.0, 5, 50).count(1e-9) == 50


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_commands_say_so(tmp_path, capsys):
    assert step.main(["--out", str(tmp_path)]) == 1
    assert state_formats.main(["--device", "cuda"]) == 1
    assert tune.main(["--out", str(tmp_path)]) == 1
    assert capsys.readouterr().out.count("no CUDA GPU") == 3
    assert not list(tmp_path.iterdir())
    assert gpu_info.gpu()["name"] == "cpu"
    assert not installed.due("cuda")
    assert not installed.due("triton")
    assert installed.due("cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["cpu", "cpu-flat"])
def test_ours_has_the_bits_of_reference(name, dtype):
    runner = timing.start(HERE[name], TINY, DTYPES[dtype], HostClock(), QUICK)
    found = check.against_reference(runner)
    assert found.same_bits
    assert (found.step, found.difference) == (candidates.FIRST_STEPS + 1, 0.0)
    assert found.moved > 0.1


@pytest.mark.parametrize("what", ["parameter", "moment"])
def test_other_bits_are_noticed(what):
    """The negative control: one ulp, in one element, after the step."""
    runner = timing.start(HERE["cpu"], TINY, torch.float32, HostClock(), QUICK)

    def off() -> None:
        runner.optimizer.step()
        tensor = runner.params[1] if what == "parameter" else runner.optimizer.state[runner.params[1]]["exp_avg_sq"]
        tensor.detach().view(torch.int32)[2, 7] += 1

    runner.step = off
    assert not check.against_reference(runner).same_bits


def test_torch_radam_agrees_within_tolerance_and_not_in_bits():
    runner = timing.start(HERE["radam-foreach"], TINY, torch.float32, HostClock(), QUICK)
    found = check.against_reference(runner)
    assert 0 < found.difference < check.TOLERANCE


def test_too_many_elements_are_compared_from_both_ends():
    params = [torch.zeros(n) for n in (3, 4, 100, 2, 1)]
    assert check.compared(params, 110) == params
    assert [p.numel() for p in check.compared(params, 50)] == [3, 4, 2, 1]
    assert [p.numel() for p in check.compared(params, 5)] == [3, 1]


def test_a_step_that_moves_nothing_is_noticed():
    runner = timing.start(HERE["cpu"], TINY, torch.float32, HostClock(), QUICK)
    runner.step = lambda: None
    found = check.against_reference(runner)
    assert found.moved == 0.0
    assert not found.same_bits


def test_baselines_that_are_not_installed_are_skipped():
    with pytest.raises(Skipped, match="ModuleNotFoundError"):
        baselines._elsewhere("no_such_package", "FusedAdam")([])


def test_too_many_tensors_are_not_compiled():
    compiled = candidates.GPU_CANDIDATES["radam-compiled"]
    with pytest.raises(Skipped, match="beyond 200"):
        compiled.build(CASES["small"], [], [])


def test_attempts_go_on():
    attempts = timing.Attempts([], time.monotonic() + 3600.0, {"triton": "it crashed"})
    cpu = HERE["cpu"]

    def fails(*_: object) -> dict:
        raise ValueError("oh")

    assert attempts.attempt(lambda *_: {"a": 1}, cpu, TINY, "fp32") == {"a": 1}
    assert attempts.attempt(fails, cpu, TINY, "fp32") is None
    assert attempts.attempt(fails, candidates.GPU_CANDIDATES["triton"], TINY, "fp32") is None
    attempts.ends = 0.0
    assert attempts.attempt(fails, cpu, TINY, "fp32") is None
    assert [entry["reason"] for entry in attempts.missing] == ["failed: ValueError: oh", "it crashed", "out of time"]


def test_traces_are_read_by_category():
    events = [
        {"cat": "kernel", "name": "b", "ts": 3, "dur": 5.0, "ph": "X", "args": {"stream": 7}},
        {"cat": "kernel", "name": "a", "ts": 1, "dur": 5.0, "ph": "X", "args": {"stream": 7}},
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD (Pinned -> Device)", "ts": 0, "dur": 1.0, "ph": "X"},
        {"cat": "gpu_memset", "name": "Memset (Device)", "ts": 4, "dur": 1.0, "ph": "X"},
        {"cat": "gpu_user_annotation", "name": "Optimizer.step", "ts": 0, "dur": 50.0, "ph": "X"},
        {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 0, "dur": 50.0, "ph": "X"},
        {"name": "process_name", "ph": "M"},
    ]
    trace = traces.read(events)
    assert (trace.kernels, len(trace.copies), trace.memsets, trace.streams) == (["a", "b"], 1, 1, {7})
    assert trace.busy == pytest.approx(12e-6)


@pytest.mark.long
def test_whole_run(tmp_path, monkeypatch, capsys):
    """The command, from its arguments to its files."""
    monkeypatch.setattr(step, "GPU_CANDIDATES", HERE)
    monkeypatch.setattr(step, "smoke", lambda backends, device: {"reference": "left out"})
    arguments = ["--out", str(tmp_path), "--cases", "tiny", "--candidates", *HERE, "--seconds-a-time", "1e-6"]
    assert step.main(arguments, on=HostClock()) == 0, capsys.readouterr().out
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {(row["candidate"], row["dtype"]) for row in found["rows"]} == {
        (name, dtype) for name in HERE if name not in ("reference", "apex") for dtype in DTYPES
    }
    assert {entry["candidate"] for entry in found["missing"]} == {"reference", "apex"}
    assert found["uncounted"] == []
    assert len(found["copies"]) == 4  # before and after, in two dtypes
    for row in found["rows"]:
        assert row["gpu_ms"]["median"] > 0
        assert row["loop_ms"]["samples"] == 5
        assert row["launches"] == 0
        if row["candidate"].startswith("cpu"):
            assert row["check"]["right"] is True
            assert row["check"]["same_bits"] is True
        elif row["candidate"] == "adamw-fused":
            assert row["check"] == {"right": None, "moves": True}
    assert "same bits" in (tmp_path / "gpu.md").read_text()
    assert "FusedRAdam cpu, flatten" in capsys.readouterr().out


def test_a_case_that_does_not_fit_is_skipped_with_the_reason(monkeypatch):
    """And the run goes on with the next: before, the copy of a case too large ended it."""

    def measured(candidate, case, dtype, on, plan):
        return {"candidate": candidate.name, "case": case.name, "dtype": dtype, "ours": True}

    monkeypatch.setattr(timing, "measure", measured)
    monkeypatch.setattr(timing, "count", lambda candidate, case, dtype, on, plan: {})
    monkeypatch.setattr(step.gpu_tables, "add_counts", lambda row, counts: None)
    suite = step.Suite(["llama8b", "tiny"], ["bf16"], [HERE["cpu"]], QUICK, 60.0)
    found = suite.run(HostClock(), lambda found: None)
    assert "ended_early" not in found
    assert [(entry["case"], entry["reason"]) for entry in found["missing"]] == [
        ("llama8b", "needs 164.5 GiB of memory, of 78.0 GiB that a run may hold")
    ]
    assert len(found["rows"]) == 1


def test_the_default_cases_fit():
    """The negative control is the one above."""
    assert [step.lacking(CASES[name], dtype) for name in GPU_DEFAULT for dtype in DTYPES.values()] == [None] * 10


def test_an_interrupted_run_keeps_what_it_has(monkeypatch):
    timed = []

    def measured(candidate, case, dtype, on, plan):
        timed.append(candidate.name)
        if len(timed) == 4:
            raise KeyboardInterrupt
        return {"candidate": candidate.name, "ours": True}

    monkeypatch.setattr(timing, "measure", measured)
    kept = []
    suite = step.Suite(["tiny"], ["fp32", "bf16"], [HERE["cpu"], HERE["cpu-flat"]], QUICK, 60.0)
    found = suite.run(HostClock(), kept.append)
    assert found["ended_early"] == "KeyboardInterrupt"
    assert len(found["rows"]) == 2
    assert len(kept) == 2


@pytest.mark.long
def test_sanitizer_workload_on_the_cpu():
    """Every kernel runs: of one that does not a sanitizer sees nothing."""
    with torch.profiler.profile() as profile:
        assert sanitizer_workload.compare_with_reference("cpu", "cpu") == len(sanitizer_workload.runs()) == 19
    assert len(sanitizer_workload.runs(timed=True)) == 6
    called = {event.key.partition("::")[2] for event in profile.key_averages() if event.key.startswith("radam_fused::")}
    assert called >= {"step_native", "grad_norm_native", "scalars_native"}


def test_sanitizer_workload_notices_other_bits(monkeypatch):
    train = sanitizer_workload.train

    def off(device, backend, *rest):
        params = train(device, backend, *rest)
        params[3].view(-1)[5] += backend == "cpu"
        return params

    monkeypatch.setattr(sanitizer_workload, "train", off)
    with pytest.raises(AssertionError, match="cpu: tensor 3"):
        sanitizer_workload.compare_with_reference("cpu", "cpu")


def test_a_backend_that_fails_its_workload_is_left_out():
    assert "failed" in step.smoke(["cpu"], "no_such_device")["cpu"]


def test_tuning_restores_the_settings(monkeypatch):
    before = tune.backend.TILE, tune.backend.WARPS, tune.backend.SLICE
    with tune.settings(TILE=512, WARPS=8):
        assert (tune.backend.TILE, tune.backend.WARPS, tune.backend.SLICE) == (512, 8, 256)
    assert before == (tune.backend.TILE, tune.backend.WARPS, tune.backend.SLICE)
    with pytest.raises(AttributeError), tune.settings(NO_SUCH=1):
        pass
    assert before == (tune.backend.TILE, tune.backend.WARPS, tune.backend.SLICE)


@pytest.mark.long
def test_tuning_sorts_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tune, "on_gpu", lambda backend, flatten: candidates.on_gpu("cpu", flatten))
    monkeypatch.setattr(tune, "available_backends", lambda: {"triton": None, "cuda": "no GPU"})
    arguments = ["--out", str(tmp_path), "--cases", "tiny", "--dtypes", "fp32", "--tile", "1024", "--warps", "4", "8"]
    assert tune.main(arguments, on=HostClock()) == 0
    (entry,) = json.loads((tmp_path / "tune.json").read_text())["results"]
    times = [row["ms"]["median"] for row in entry["settings"]]
    assert len(times) == 8
    assert times == sorted(times)
    shown = capsys.readouterr().out
    assert "% of copy: TILE 1024" in shown
    assert "cuda was not tuned: no GPU" in shown
    arguments += ["--seconds", "0"]
    assert tune.main(arguments, on=HostClock()) == 0
    assert "8 settings were not timed" in capsys.readouterr().out


def test_grids_of_cuda_are_timed_in_processes_of_their_own(monkeypatch, capsys):
    monkeypatch.setattr(tune, "on_gpu", lambda backend, flatten: candidates.on_gpu("cpu", flatten))
    assert tune.main(["--one-grid", "--cases", "tiny", "--dtypes", "fp32", "bf16"], on=HostClock()) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [(row["case"], row["dtype"]) for row in printed] == [("tiny", "fp32"), ("tiny", "bf16")]
    asked = []

    def child(command, env, **options):
        asked.append(env.get(tune.VARIABLE))
        if len(asked) == 3:
            raise subprocess.CalledProcessError(1, command, stderr="oh")
        return subprocess.CompletedProcess(command, 0, stdout=f"hello\n{json.dumps(printed)}\n")

    monkeypatch.setattr(subprocess, "run", child)
    found = tune.cuda_grids(["tiny"], ["fp32", "bf16"], 132, 60.0, per_sm=(0, 1, 2, 4))
    assert asked == [None, "132", "264", "528"]
    assert [row["BLOCKS_PER_SM"] for row in found["tiny", "bf16"]] == [0, 1, 4]
    assert "264 blocks: oh" in capsys.readouterr().out


def test_state_formats_are_timed_and_a_skipped_backend_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(state_formats, "available_backends", lambda: {"cuda": "not built", "cpu": None})
    path = tmp_path / "forms.json"
    arguments = ["--elements", "5000", "--rounds", "2", "--results", str(path)]
    assert state_formats.main([*arguments, "--backends", "cuda", "cpu"]) == 1
    found = json.loads(path.read_text())
    assert found[keys.SKIPPED] == {"cuda": "not built"}
    expected = [(one.name, "cpu") for one in state_formats.FORMATS]
    assert [(row["form"], row["backend"]) for row in found["rows"]] == expected
    assert all(row["ms"] > 0.0 for row in found["rows"])
    assert "cuda was not measured: not built" in capsys.readouterr().out
    assert state_formats.main([*arguments, "--backends", "cpu"]) == 0
