"""What the stages of ``make gpu`` do: their commands, their time, and how their outcome is judged."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from bench.gpu.stages import FAILED, PASSED, SKIPPED, Stage, Task, Verdict

ROOT = Path(__file__).resolve().parents[2]
TOTAL = 530.0
"""Seconds for all stages together."""
DEFAULT = ("build", "test", "sanitize", "forms", "bench")
SANITIZERS = ("memcheck", "initcheck", "racecheck")
# What compute-sanitizer says where the machine does not let it work.
CANNOT = (
    "Device not supported",
    "Internal Sanitizer Error",
    "Unable to find injection library",
    "terminated before first instrumented API call",
    "not supported on the current",
)


def judge_pytest(status: int, log: str) -> Verdict:
    """Tests must have passed; that none ran is a failure, whatever pytest's status."""
    ends = re.findall(r"^=*\s*((?:\d+ \w+, )*\d+ \w+(?:, \d+ \w+)*) in [\d.]+s", log, re.MULTILINE)
    summary = ends[-1] if ends else "no summary"
    if status != 0:
        failed = re.findall(r"^(?:FAILED|ERROR) .*", log, re.MULTILINE)
        return FAILED, "; ".join([summary, *(line[:160] for line in failed[:6])])
    if not re.search(r"\b[1-9]\d* passed", summary):
        return FAILED, f"no test ran ({summary})"
    return PASSED, summary


def judge_build(status: int, log: str) -> Verdict:
    """pip's own last line says what went wrong."""
    if status == 0:
        return PASSED, ""
    errors = re.findall(r"^.*\berror\b.*$", log, re.MULTILINE | re.IGNORECASE)
    return FAILED, f"exit status {status}" + (f": {errors[0].strip()[:200]}" if errors else "")


def judge_backends(status: int, log: str) -> Verdict:
    """Whether everything that should run here does."""
    if status == 0:
        return PASSED, "; ".join(line for line in log.splitlines() if ": " in line)[:300]
    lines = [line for line in log.splitlines() if line.startswith("MISSING")] or log.strip().splitlines()[-1:]
    return FAILED, "; ".join(lines)[:300]


def _cannot(log: str) -> str | None:
    """The line in which a sanitizer says that it cannot work here."""
    return next((line.strip("= ") for line in log.splitlines() if any(text in line for text in CANNOT)), None)


def judge_sanitizer(status: int, log: str) -> Verdict:
    """Clean only if the tool gives its summary with no error in it, and the exercise has run under it."""
    found = re.search(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)", log)
    exercised = re.findall(r"^exercised (\w+)", log, re.MULTILINE)
    absent = re.findall(r"^absent (\w+)", log, re.MULTILINE)
    if status == 0 and found and found[1] == "0" and exercised:
        return PASSED, f"{', '.join(exercised)} clean" + (f"; not there: {', '.join(absent)}" if absent else "")
    reason = _cannot(log)
    if reason is not None:
        return SKIPPED, f"cannot run on this machine: {reason}"[:300]
    if status == 0 and found and found[1] == "0" and absent:
        return SKIPPED, f"no backend to exercise: {', '.join(absent)} not there"
    return FAILED, found[0] if found else f"exit status {status}, no summary"


def judge_planted(status: int, log: str) -> Verdict:
    """The negative control of the sanitizer: a write out of bounds has to be found."""
    if "Invalid __global__ write" in log:
        return PASSED, "a planted write out of bounds was found"
    reason = _cannot(log)
    if reason is not None:
        return SKIPPED, f"cannot run on this machine: {reason}"[:300]
    return FAILED, "a planted write out of bounds was not found"


def _sanitizer() -> str | None:
    """compute-sanitizer, on PATH or in the toolkit's folders."""
    toolkit = Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda")
    places = (toolkit / "bin", toolkit / "compute-sanitizer", toolkit / "extras" / "compute-sanitizer")
    return shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=os.pathsep.join(map(str, places))
    )


def _sanitize() -> list[Task]:
    tool = _sanitizer()
    missing = None if tool else "compute-sanitizer is not installed"
    # Every tensor gets an allocation of its own, so that running over its end shows.
    environment: dict[str, str | None] = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "TRITON_INTERPRET": None}

    def task(name: str, check: str, judge: Callable[[int, str], Verdict], *options: str) -> Task:
        flags = ["--tool", check, "--error-exitcode", "9", "--print-limit", "20"]
        command = [tool or "", *flags, sys.executable, "-m", "bench.gpu.sanitizer_workload", *options]
        return Task(name, command, environment, judge, missing=missing)

    return [
        *(task(name, name, judge_sanitizer) for name in SANITIZERS),
        task("planted", "memcheck", judge_planted, "--plant"),
    ]


def _dealt(workers: int) -> list[list[str]]:
    """The files of the ordinary suite, dealt out: the longest first, as those mostly take the longest."""
    paths = [path for path in ROOT.glob("tests/**/test_*.py") if path.parent.name != "gpu"]
    files = [path.relative_to(ROOT).as_posix() for path in sorted(paths, key=lambda path: -path.stat().st_size)]
    return [files[k::workers] for k in range(min(workers, len(files)))]


def _tests() -> list[Task]:
    """The ordinary suite as on a machine without a GPU, and beside it the GPU's own tests."""
    cores = os.cpu_count() or 1
    # A file that does not import, for want of what it tests with, must not keep the others from running.
    flags = ["-q", "--durations=10", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    pytest = [sys.executable, "-m", "pytest", *flags]
    workers = max(1, min(12, cores - 4))
    xdist = importlib.util.find_spec("xdist") is not None
    by_file = ["-n", "3", "--dist", "loadfile"] if xdist else []  # the tests that fill the memory are in one file
    shares = [["-n", str(workers), "tests", "--ignore=tests/gpu"]] if xdist else _dealt(workers)
    environment: dict[str, str | None] = {
        "CUDA_VISIBLE_DEVICES": "",
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": str(max(1, cores // workers)),
    }
    names = [f"suite{f'-{k}' if len(shares) > 1 else ''}" for k in range(1, len(shares) + 1)]
    return [
        *(Task(name, [*pytest, *share], environment, judge_pytest) for name, share in zip(names, shares, strict=True)),
        Task("gpu", [*pytest, *by_file, "-rs", "tests/gpu"], {"TRITON_INTERPRET": None}, judge_pytest),
    ]


def stages(results: Path) -> dict[str, Stage]:
    """Every stage by name; benchmarks write to `results`."""
    python = sys.executable
    pip = ["-m", "pip", "install", "-v", "--disable-pip-version-check", "--no-build-isolation", "--no-deps"]
    compiled: dict[str, str | None] = {"TRITON_INTERPRET": None}
    found = (
        Stage(
            "build",
            [
                Task("install", [python, *pip, "--editable", "."], judge=judge_build),
                Task("backends", [python, "-m", "bench.gpu.installed"], compiled, judge_backends),
            ],
            limit=150.0,
            least=30.0,
        ),
        Stage("test", _tests(), limit=210.0, least=90.0, together=True),
        Stage("sanitize", _sanitize(), limit=90.0, least=40.0, together=True),
        Stage(
            "forms",
            [
                Task(
                    "forms",
                    [
                        *(python, "-m", "bench.studies.state_formats", "--device", "cuda"),
                        *("--results", str(results / "forms.json")),
                    ],
                    compiled,
                )
            ],
            limit=60.0,
            least=20.0,
        ),
        Stage(
            "bench",
            [Task("step", [python, "-m", "bench.gpu.step", "--out", str(results), "--seconds", "{seconds}"], compiled)],
            limit=235.0,
            least=170.0,
        ),
        Stage(
            "tune",
            [
                Task(
                    "triton",
                    [python, "-m", "bench.gpu.tune", "--out", str(results), "--seconds", "{seconds}"],
                    compiled,
                )
            ],
            limit=240.0,
            least=60.0,
        ),
    )
    return {stage.name: stage for stage in found}
