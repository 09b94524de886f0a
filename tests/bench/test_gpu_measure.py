"""The measuring itself, with the CPU in place of a GPU."""

from __future__ import annotations

import json
import subprocess
import time

import pytest
import torch

from bench.gpu import candidates, check, installed, machine, measure, sanitizer_workload, step, traces, tune, tune_cuda
from bench.gpu.cases import CASES, DTYPES, pass_bytes, values
from bench.gpu.clock import HostClock
from bench.optimizers import baselines
from bench.optimizers.baselines import Absent
from bench.optimizers.time_limit import TimeUp, time_limit
from bench.studies import state_formats

TINY = CASES["tiny"]
QUICK = measure.Plan(seconds=1e-6, least=3)
HERE = {
    contestant.name: contestant
    for contestant in (
        candidates.fused("cpu", False),
        candidates.fused("cpu", True),
        candidates.fused("reference", False),
        candidates.CONTESTANTS["radam-foreach"],
        candidates.CONTESTANTS["adamw-fused"],
        candidates.CONTESTANTS["apex"],
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


def test_bytes_of_a_pass():
    assert pass_bytes(TINY, torch.float32, torch.float32) == 28 * TINY.elements
    assert pass_bytes(TINY, torch.bfloat16, torch.float32) == 22 * TINY.elements
    assert pass_bytes(TINY, torch.bfloat16, torch.bfloat16) == 14 * TINY.elements
    of = {name: c.pass_bytes(TINY, torch.bfloat16) / TINY.elements for name, c in candidates.CONTESTANTS.items()}
    assert (of["cuda"], of["apex"], of["adamw-fused"], of["bitsandbytes"]) == (22, 22, 14, 10)


def test_values_repeat():
    a, b = (values(TINY, torch.bfloat16, "cpu", 0.5, 3) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert [tuple(x.shape) for x in a] == TINY.shapes


def test_quartiles():
    assert measure.quartiles([]) is None
    assert measure.quartiles([2.0]) == {"q1": 2.0, "median": 2.0, "q3": 2.0, "samples": 1}
    assert measure.quartiles([1, 2, 3, 4, 5], 1e3) == {"q1": 2000.0, "median": 3000.0, "q3": 4000.0, "samples": 5}


def test_counts_fit_the_time():
    assert measure.Plan(1.0, 5, 50).count(0.1) == 10
    assert measure.Plan(1.0, 5, 50).count(10.0) == 5
    assert measure.Plan(1.0, 5, 50).count(1e-9) == 50


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_commands_say_so(tmp_path, capsys):
    assert step.main(["--out", str(tmp_path)]) == 1
    assert state_formats.main(["--device", "cuda"]) == 1
    assert tune.main(["--out", str(tmp_path)]) == 1
    assert capsys.readouterr().out.count("no CUDA GPU") == 3
    assert not list(tmp_path.iterdir())
    assert machine.gpu()["name"] == "cpu"
    assert not installed.due("cuda")
    assert not installed.due("triton")
    assert installed.due("cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["cpu", "cpu-flat"])
def test_ours_has_the_bits_of_reference(name, dtype):
    runner = measure.start(HERE[name], TINY, DTYPES[dtype], HostClock())
    found = check.against_reference(runner)
    assert found.same_bits
    assert (found.step, found.difference) == (measure.WARMUP + 1, 0.0)
    assert found.moved > 0.1


@pytest.mark.parametrize("what", ["parameter", "moment"])
def test_other_bits_are_noticed(what):
    """The negative control: one ulp, in one element, after the step."""
    runner = measure.start(HERE["cpu"], TINY, torch.float32, HostClock())

    def off() -> None:
        runner.optimizer.step()
        tensor = runner.params[1] if what == "parameter" else runner.optimizer.state[runner.params[1]]["exp_avg_sq"]
        tensor.detach().view(torch.int32)[2, 7] += 1

    runner.step = off
    assert not check.against_reference(runner).same_bits


def test_torch_radam_agrees_within_tolerance_and_not_in_bits():
    runner = measure.start(HERE["radam-foreach"], TINY, torch.float32, HostClock())
    found = check.against_reference(runner)
    assert 0 < found.difference < check.TOLERANCE


def test_too_many_elements_are_compared_from_both_ends():
    params = [torch.zeros(n) for n in (3, 4, 100, 2, 1)]
    assert check.compared(params, 110) == params
    assert [p.numel() for p in check.compared(params, 50)] == [3, 4, 2, 1]
    assert [p.numel() for p in check.compared(params, 5)] == [3, 1]


def test_a_step_that_moves_nothing_is_noticed():
    runner = measure.start(HERE["cpu"], TINY, torch.float32, HostClock())
    runner.step = lambda: None
    found = check.against_reference(runner)
    assert found.moved == 0.0
    assert not found.same_bits


def test_peers_that_are_not_installed_are_absent():
    with pytest.raises(Absent, match="ModuleNotFoundError"):
        baselines._elsewhere("no_such_package", "FusedAdam")([])


def test_time_limits_ring():
    with pytest.raises(TimeUp, match="longer than"), time_limit(0.05):
        time.sleep(5)
    with time_limit(0.05):
        pass
    time.sleep(0.1)  # no alarm is left behind
    with time_limit(None):
        pass


def test_too_many_tensors_are_not_compiled():
    compiled = candidates.CONTESTANTS["radam-compiled"]
    with pytest.raises(Absent, match="beyond 200"):
        compiled.build(CASES["small"], [], [])


def test_attempts_go_on():
    attempts = measure.Attempts([], time.monotonic() + 60.0, {"triton": "it crashed"})
    cpu = HERE["cpu"]

    def fails(*_: object) -> dict:
        raise ValueError("oh")

    assert attempts.attempt(lambda *_: {"a": 1}, cpu, TINY, "fp32") == {"a": 1}
    assert attempts.attempt(fails, cpu, TINY, "fp32") is None
    assert attempts.attempt(fails, candidates.CONTESTANTS["triton"], TINY, "fp32") is None
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


def test_whole_run(tmp_path, monkeypatch, capsys):
    """The command, from its arguments to its files."""
    monkeypatch.setattr(step, "CONTESTANTS", HERE)
    monkeypatch.setattr(step, "smoke", lambda backends, device: {"reference": "left out"})
    arguments = ["--out", str(tmp_path), "--cases", "tiny", "--contestants", *HERE, "--seconds-a-time", "1e-6"]
    assert step.main(arguments, on=HostClock()) == 0, capsys.readouterr().out
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {(row["contestant"], row["dtype"]) for row in found["rows"]} == {
        (name, dtype) for name in HERE if name not in ("reference", "apex") for dtype in DTYPES
    }
    assert {entry["contestant"] for entry in found["missing"]} == {"reference", "apex"}
    assert found["uncounted"] == []
    assert len(found["copies"]) == 4  # before and after, in two dtypes
    for row in found["rows"]:
        assert row["gpu_ms"]["median"] > 0
        assert row["loop_ms"]["samples"] == 5
        assert row["launches"] == 0
        if row["contestant"].startswith("cpu"):
            assert row["check"]["right"] is True
            assert row["check"]["same_bits"] is True
        elif row["contestant"] == "adamw-fused":
            assert row["check"] == {"right": None, "moves": True}
    assert "same bits" in (tmp_path / "gpu.md").read_text()
    assert "FusedRAdam cpu, flatten" in capsys.readouterr().out


def test_an_interrupted_run_keeps_what_it_has(monkeypatch):
    timed = []

    def measured(contestant, case, dtype, on, plan):
        timed.append(contestant.name)
        if len(timed) == 4:
            raise KeyboardInterrupt
        return {"contestant": contestant.name, "ours": True}

    monkeypatch.setattr(measure, "measure", measured)
    kept = []
    suite = step.Suite(["tiny"], ["fp32", "bf16"], [HERE["cpu"], HERE["cpu-flat"]], QUICK, 60.0)
    found = suite.run(HostClock(), kept.append)
    assert found["ended_early"] == "KeyboardInterrupt"
    assert len(found["rows"]) == 2
    assert len(kept) == 2


def test_exercise_on_the_cpu():
    """Every kernel runs: of one that does not a sanitizer sees nothing."""
    with torch.profiler.profile() as profile:
        assert sanitizer_workload.exercise("cpu", "cpu") == len(sanitizer_workload.runs()) == 19
    assert len(sanitizer_workload.runs(timed=True)) == 6
    called = {event.key.partition("::")[2] for event in profile.key_averages() if event.key.startswith("radam_fused::")}
    assert called >= {"step_native", "grad_norm_native", "scalars_native"}


def test_exercise_notices_other_bits(monkeypatch):
    train = sanitizer_workload.train

    def off(device, backend, *rest):
        params = train(device, backend, *rest)
        params[3].view(-1)[5] += backend == "cpu"
        return params

    monkeypatch.setattr(sanitizer_workload, "train", off)
    with pytest.raises(AssertionError, match="cpu: tensor 3"):
        sanitizer_workload.exercise("cpu", "cpu")


def test_a_backend_that_fails_its_exercise_is_left_out():
    assert "failed" in step.smoke(["cpu"], "no_such_device")["cpu"]


def test_tuning_restores_the_settings(monkeypatch):
    before = tune.backend.TILE, tune.backend.WARPS, tune.backend.SLICE
    with tune.settings(TILE=512, WARPS=8):
        assert (tune.backend.TILE, tune.backend.WARPS, tune.backend.SLICE) == (512, 8, 256)
    assert before == (tune.backend.TILE, tune.backend.WARPS, tune.backend.SLICE)
    with pytest.raises(AttributeError), tune.settings(NO_SUCH=1):
        pass
    assert before == (tune.backend.TILE, tune.backend.WARPS, tune.backend.SLICE)


def test_tuning_sorts_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tune, "fused", lambda backend, flatten: candidates.fused("cpu", flatten))
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
    assert tune_cuda.main(["--cases", "tiny", "--dtypes", "fp32", "bf16"], on=HostClock(), backend="cpu") == 0
    printed = json.loads(capsys.readouterr().out)
    assert [(row["case"], row["dtype"]) for row in printed] == [("tiny", "fp32"), ("tiny", "bf16")]
    asked = []

    def child(command, env, **options):
        asked.append(env.get(tune_cuda.VARIABLE))
        if len(asked) == 3:
            raise subprocess.CalledProcessError(1, command, stderr="oh")
        return subprocess.CompletedProcess(command, 0, stdout=f"hello\n{json.dumps(printed)}\n")

    monkeypatch.setattr(subprocess, "run", child)
    found = tune_cuda.tune(["tiny"], ["fp32", "bf16"], 132, 60.0, per_sm=(0, 1, 2, 4))
    assert asked == [None, "132", "264", "528"]
    assert [row["BLOCKS_PER_SM"] for row in found["tiny", "bf16"]] == [0, 1, 4]
    assert "264 blocks: oh" in capsys.readouterr().out


def test_stored_forms_are_timed_and_an_absent_backend_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(state_formats, "available_backends", lambda: {"cuda": "not built", "cpu": None})
    path = tmp_path / "forms.json"
    arguments = ["--elements", "5000", "--rounds", "2", "--results", str(path)]
    assert state_formats.main([*arguments, "--backends", "cuda", "cpu"]) == 1
    found = json.loads(path.read_text())
    assert found["absent"] == {"cuda": "not built"}
    expected = [(form.name, "cpu") for form in state_formats.FORMS]
    assert [(row["form"], row["backend"]) for row in found["rows"]] == expected
    assert all(row["ms"] > 0.0 for row in found["rows"])
    assert "cuda was not measured: not built" in capsys.readouterr().out
    assert state_formats.main([*arguments, "--backends", "cpu"]) == 0
