"""The runner behind ``make gpu``: limits, judgements, logs; with stages that take no GPU."""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.gpu import __main__ as command
from bench.gpu import gpu_plots, stage_list
from bench.gpu.stages import FAILED, PASSED, SKIPPED, Outcome, Stage, Task, run, run_stage


def python(name: str, code: str, **options: object) -> Task:
    return Task(name, [sys.executable, "-c", code], **options)


def test_a_failing_task_does_not_stop_the_others(tmp_path):
    first = Stage("one", [python("bad", "print('oh'); raise SystemExit(3)"), python("good", "print('fine')")], 60, 0)
    second = Stage("two", [python("good", "print('too')")], 60, 0)
    shown = []
    outcomes = run([first, second], 60, tmp_path, after=lambda stage, done: shown.append((stage.name, len(done))))
    assert [(o.task, o.status) for o in outcomes] == [("bad", FAILED), ("good", PASSED), ("good", PASSED)]
    assert outcomes[0].reason == "exit status 3: oh"
    assert [o.log for o in outcomes] == ["oh\n", "fine\n", "too\n"]
    assert shown == [("one", 2), ("two", 1)]


def shell(name: str, script: str) -> Task:
    """A task that is there at once, however busy the machine is: Python takes a while to start."""
    return Task(name, ["sh", "-c", script])


def set_clock(monkeypatch: pytest.MonkeyPatch, now: Callable[[], float]) -> None:
    """Makes the runner's clock a fake: time limits end when the task has come as far as the test needs it."""
    monkeypatch.setattr("bench.gpu.stages.time", SimpleNamespace(monotonic=now, sleep=time.sleep))


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # ended, and not asked for yet


def test_a_task_that_takes_too_long_is_interrupted_and_may_say_so(tmp_path, monkeypatch):
    ready = tmp_path / "ready"
    set_clock(monkeypatch, lambda: 100.0 if ready.exists() else 0.0)
    slow = shell("slow", f"trap 'echo was here; exit 1' INT; touch {ready}; while :; do sleep 0.1; done")
    (outcome,) = run_stage(Stage("s", [slow], 90, 0), 90.0, tmp_path)
    assert outcome.status == FAILED
    assert outcome.reason == "cut off after its 90 s"
    assert outcome.log == "was here\n"


def test_one_that_does_not_listen_is_killed_with_its_children(tmp_path, monkeypatch):
    children = tmp_path / "children"
    later = itertools.count(100, 100)  # further than GRACE at each look
    set_clock(monkeypatch, lambda: float(next(later)) if children.exists() else 0.0)
    deaf = shell("deaf", f"trap '' INT; sleep 600 & echo $! > {children}-; mv {children}- {children}; wait; sleep 600")
    (outcome,) = run_stage(Stage("s", [deaf], 90, 0), 90.0, tmp_path)
    assert outcome.status == FAILED
    child = int(children.read_text())
    for _ in range(600):  # the kernel ends it soon after the signal
        if not is_running(child):
            break
        time.sleep(0.1)
    assert not is_running(child)
    assert is_running(os.getpid())


def test_tasks_together_run_at_once(tmp_path):
    """Each ends only once the other has begun."""
    meet = "touch {own}; for i in $(seq 600); do test -e {other} && exit 0; sleep 0.1; done; exit 1"
    names = [tmp_path / name for name in "ab"]
    tasks = [shell(a.name, meet.format(own=a, other=b)) for a, b in (names, names[::-1])]
    assert [o.status for o in run_stage(Stage("s", tasks, 90, 0, together=True), 90, tmp_path)] == [PASSED, PASSED]


def test_a_stage_leaves_the_next_what_they_need(tmp_path, monkeypatch):
    set_clock(monkeypatch, lambda: 0.0)
    limits = []
    stages = [Stage("a", [], 100, 20), Stage("b", [], 100, 30), Stage("c", [], 100, 40)]
    run(stages, 120, tmp_path, before=lambda stage, limit: limits.append(limit))
    assert limits == [50, 80, 100]


def test_nothing_starts_without_time_and_what_is_missing_is_skipped(tmp_path):
    tasks = [python("late", "1"), python("skipped", "1", missing="no such tool"), Task("none", ["/no/such/program"])]
    outcomes = run_stage(Stage("s", tasks, 60, 0), 0.0, tmp_path)
    assert [o.status for o in outcomes] == [FAILED, SKIPPED, FAILED]
    assert outcomes[1].reason == "no such tool"
    assert "No such file" in run_stage(Stage("s", tasks[2:], 60, 0), 10.0, tmp_path)[0].reason


def test_environment_and_seconds_reach_the_task(tmp_path, monkeypatch):
    monkeypatch.setenv("TAKEN_AWAY", "1")
    code = "import os, sys; print(os.environ.get('TAKEN_AWAY'), os.environ['GIVEN'], sys.argv[1])"
    environment = {"TAKEN_AWAY": None, "GIVEN": "2"}
    task = Task("t", [sys.executable, "-c", code, "{seconds}"], environment, limit=30.0)
    (outcome,) = run_stage(Stage("s", [task], 60, 0), 60, tmp_path)
    assert outcome.log == "None 2 30\n"


@pytest.mark.parametrize(
    ("status", "log", "verdict"),
    [
        (0, "....\n12 passed, 3 skipped in 1.25s\n", (PASSED, "12 passed, 3 skipped")),
        (0, "==== 12 passed in 61.25s (0:01:01) ====\n", (PASSED, "12 passed")),
        (0, "3 skipped in 1.25s\n", (FAILED, "no test ran (3 skipped)")),
        (5, "no tests ran in 0.01s\n", (FAILED, "no summary")),
        (
            1,
            "FAILED tests/a.py::b - oh\n1 failed, 2 passed in 1.0s",
            (FAILED, "1 failed, 2 passed; FAILED tests/a.py::b - oh"),
        ),
    ],
)
def test_tests_are_judged(status, log, verdict):
    assert stage_list.judge_pytest(status, log) == verdict


CLEAN = "ran cuda: 12 runs\nran triton: 12 runs\n========= ERROR SUMMARY: 0 errors\n"


@pytest.mark.parametrize(
    ("status", "log", "expected"),
    [
        (0, CLEAN, PASSED),
        (
            0,
            CLEAN.replace("ERROR SUMMARY: 0 errors", "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"),
            PASSED,
        ),
        (0, "ran triton: 12 runs\nskipped cuda: not built\n========= ERROR SUMMARY: 0 errors\n", PASSED),
        (9, CLEAN.replace("0 errors", "3 errors"), FAILED),
        (9, CLEAN, FAILED),
        (0, "========= ERROR SUMMARY: 0 errors\n", FAILED),
        (0, "skipped cuda: no\nskipped triton: no\n========= ERROR SUMMARY: 0 errors\n", SKIPPED),
        (1, "AssertionError: cuda: tensor 3\n========= ERROR SUMMARY: 0 errors\n", FAILED),
        (0, "ran triton: 12 runs\n", FAILED),
        (255, "========= Error: Device not supported. Please refer to the documentation\n", SKIPPED),
        (1, "", FAILED),
    ],
)
def test_sanitizers_are_judged(status, log, expected):
    assert stage_list.judge_sanitizer(status, log)[0] == expected


def test_the_planted_error_is_judged():
    assert stage_list.judge_planted(9, "========= Invalid __global__ write of size 4 bytes\n")[0] == PASSED
    assert stage_list.judge_planted(0, CLEAN)[0] == FAILED
    assert stage_list.judge_planted(255, "========= Error: Device not supported\n")[0] == SKIPPED


def test_builds_and_backends_are_judged():
    assert stage_list.judge_build(0, "") == (PASSED, "")
    assert "nvcc fatal error: oh" in stage_list.judge_build(1, "fine\nnvcc fatal error: oh\n")[1]
    assert stage_list.judge_backends(0, "triton: runs here\n") == (PASSED, "triton: runs here")
    assert stage_list.judge_backends(1, "cpu: runs here\nMISSING cuda: not built\n") == (
        FAILED,
        "MISSING cuda: not built",
    )
    assert stage_list.judge_backends(1, "ImportError: no\n") == (FAILED, "ImportError: no")


@pytest.mark.parametrize("xdist", [True, False], ids=["with_xdist", "without_xdist"])
def test_every_file_of_the_suite_is_run_once(xdist, monkeypatch):
    monkeypatch.setattr(stage_list.importlib.util, "find_spec", lambda name: xdist or None)
    monkeypatch.setattr(stage_list.os, "cpu_count", lambda: 16)
    *suite, gpu = stage_list._tests()
    assert gpu.command[-1] == "tests/gpu"
    assert len(suite) == (1 if xdist else 12)
    assert all("--continue-on-collection-errors" in task.command for task in (*suite, gpu))
    named = [part for task in suite for part in task.command if part.startswith("tests")]
    files = {path.relative_to(stage_list.ROOT).as_posix() for path in stage_list.ROOT.glob("tests/**/test_*.py")}
    expected = ["tests"] if xdist else sorted(name for name in files if not name.startswith("tests/gpu/"))
    assert sorted(named) == expected
    assert "tests/bench/test_gpu_stages.py" in files


def test_the_plan_fits_its_time():
    stages = stage_list.stages(Path("results"))
    assert list(stages)[:5] == list(stage_list.DEFAULT)
    assert sum(stages[name].least for name in stage_list.DEFAULT) < stage_list.TOTAL < 540
    assert all(stage.least <= stage.limit for stage in stages.values())


def fake(failing: bool):
    """Stages, one of which leaves all the files that there may be."""

    def stages(folder: Path) -> dict[str, Stage]:
        names = ["gpu.md", *gpu_plots.NAMES, "formats.json", "tune.json"]
        write = f"import pathlib; [pathlib.Path({str(folder)!r}, n).write_text('[1]') for n in {names}]"
        fine = f"print({str(stage_list.ROOT)!r}); {write}"
        tasks = [python("fine", fine), python("bad", f"raise SystemExit({int(failing)})")]
        return {"build": Stage("build", tasks, 60, 0), "bench": Stage("bench", [], 60, 0)}

    return stages


@pytest.mark.parametrize("failing", [True, False], ids=["failing", "fine"])
def test_command(failing, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "stages", fake(failing))
    monkeypatch.setattr(command, "ask_machine", lambda: {"gpu": {"name": "NVIDIA X 1"}, "versions": {}})
    assert command.main(["--stages", "build", "bench", "--results", str(tmp_path)]) == int(failing)
    shown = capsys.readouterr().out
    assert "passed  build fine" in shown
    assert ("failed  build bad" in shown) == failing
    kept = json.loads((tmp_path / "stages.json").read_text())
    assert kept["gpu"]["name"] == "NVIDIA X 1"
    assert [stage["task"] for stage in kept["stages"]] == ["fine", "bad"]
    log = (tmp_path / "log.txt").read_text()
    assert str(stage_list.ROOT) not in log
    assert "##### build fine: passed" in log
    assert kept["formats"] == kept["tune"] == [1]
    files = {path.name for path in tmp_path.iterdir()} | {"gpu.json"}
    assert files == {"gpu.json", "gpu.md", *gpu_plots.NAMES, "stages.json", "log.txt"}
    assert len(files) <= 8


def test_command_refuses_unknown_stages(capsys):
    with pytest.raises(SystemExit):
        command.parse(["--stages", "built"])
    assert "invalid choice" in capsys.readouterr().err
    assert command.parse([]).stages == ["build", "test", "sanitize", "formats", "bench"]
    assert command.parse(["--stages", "tune"]).stages == ["tune"]


def test_machine_is_asked_in_another_process():
    about = command.ask_machine()
    assert about["gpu"]["name"] != "unknown", about
    assert about["versions"]["torch"]


def test_names_of_folders():
    assert command.slug("NVIDIA H200") == "nvidia-h200"
    assert command.slug("NVIDIA GeForce RTX 4090 (µ)") == "nvidia-geforce-rtx-4090"
    assert command.slug("") == "unknown"


def test_table_counts():
    outcomes = [Outcome("a", "b", PASSED, "", 1.0), Outcome("a", "c", FAILED, "why", 2.0)]
    assert command.table(outcomes).endswith("1 of 2 failed")
    assert command.table(outcomes[:1]).endswith("nothing failed")
