"""The stages of ``make gpu``: their commands, their time limits, and how their outcome is judged."""

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
DEFAULT = ("build", "test", "sanitize", "formats", "bench")
SANITIZERS = ("memcheck", "initcheck", "racecheck")
# What compute-sanitizer prints on a machine where it cannot run.
CANNOT = (
    "Device not supported",
    "Internal Sanitizer Error",
    "Unable to find injection library",
    "terminated before first instrumented API call",
    "not supported on the current",
)


def judge_pytest(status: int, log: str) -> Verdict:
    """Passes if tests ran and passed; if none ran it fails, whatever pytest's status."""
    ends = re.findall(r"^=*\s*((?:\d+ \w+, )*\d+ \w+(?:, \d+ \w+)*) in [\d.]+s", log, re.MULTILINE)
    summary = ends[-1] if ends else "no summary"
    if status != 0:
        failed = re.findall(r"^(?:FAILED|ERROR) .*", log, re.MULTILINE)
        return FAILED, "; ".join([summary, *(line[:160] for line in failed[:6])])
    if not re.search(r"\b[1-9]\d* passed", summary):
        return FAILED, f"no test ran ({summary})"
    return PASSED, summary


def judge_build(status: int, log: str) -> Verdict:
    """The reason is the first line of the log with an error."""
    if status == 0:
        return PASSED, ""
    errors = re.findall(r"^.*\berror\b.*$", log, re.MULTILINE | re.IGNORECASE)
    return FAILED, f"exit status {status}" + (f": {errors[0].strip()[:200]}" if errors else "")


def judge_backends(status: int, log: str) -> Verdict:
    """Passes if every backend that should run here does."""
    if status == 0:
        return PASSED, "; ".join(line for line in log.splitlines() if ": " in line)[:300]
    lines = [line for line in log.splitlines() if line.startswith("MISSING")] or log.strip().splitlines()[-1:]
    return FAILED, "; ".join(lines)[:300]


def _cannot(log: str) -> str | None:
    """The line of the log which says that a sanitizer cannot run here."""
    return next((line.strip("= ") for line in log.splitlines() if any(text in line for text in CANNOT)), None)


def judge_sanitizer(status: int, log: str) -> Verdict:
    """Passes only if the sanitizer's summary has no error and the workload has run under it."""
    found = re.search(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)", log)
    ran = re.findall(r"^ran (\w+)", log, re.MULTILINE)
    skipped = re.findall(r"^skipped (\w+)", log, re.MULTILINE)
    if status == 0 and found and found[1] == "0" and ran:
        return PASSED, f"{', '.join(ran)} clean" + (f"; not there: {', '.join(skipped)}" if skipped else "")
    reason = _cannot(log)
    if reason is not None:
        return SKIPPED, f"cannot run on this machine: {reason}"[:300]
    if status == 0 and found and found[1] == "0" and skipped:
        return SKIPPED, f"no backend to run: {', '.join(skipped)} not there"
    return FAILED, found[0] if found else f"exit status {status}, no summary"


def judge_planted(status: int, log: str) -> Verdict:
    """The negative control of the sanitizer: it must find the planted write out of bounds."""
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
    # Every tensor gets its own allocation, so that an access beyond its end is an error.
    environment: dict[str, str | None] = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "TRITON_INTERPRET": None}

    def task(name: str, check: str, judge: Callable[[int, str], Verdict], *options: str) -> Task:
        flags = ["--tool", check, "--error-exitcode", "9", "--print-limit", "20"]
        command = [tool or "", *flags, sys.executable, "-m", "bench.gpu.sanitizer_workload", *options]
        return Task(name, command, environment, judge, missing=missing)

    return [
        *(task(name, name, judge_sanitizer) for name in SANITIZERS),
        task("planted", "memcheck", judge_planted, "--plant"),
    ]


def _split(workers: int) -> list[list[str]]:
    """The ordinary suite's files, split among workers; the longest files first, as most of them take the longest."""
    paths = [path for path in ROOT.glob("tests/**/test_*.py") if path.parent.name != "gpu"]
    files = [path.relative_to(ROOT).as_posix() for path in sorted(paths, key=lambda path: -path.stat().st_size)]
    return [files[k::workers] for k in range(min(workers, len(files)))]


def _tests() -> list[Task]:
    """The ordinary suite, run as on a machine without a GPU, and the GPU's own tests beside it."""
    cores = os.cpu_count() or 1
    # A test file whose imports fail must not stop the others.
    flags = ["-q", "--durations=10", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    pytest = [sys.executable, "-m", "pytest", *flags]
    workers = max(1, min(12, cores - 4))
    xdist = importlib.util.find_spec("xdist") is not None
    by_file = ["-n", "3", "--dist", "loadfile"] if xdist else []  # the tests that fill the GPU's memory are in one file
    shares = [["-n", str(workers), "tests", "--ignore=tests/gpu"]] if xdist else _split(workers)
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
            "formats",
            [
                Task(
                    "formats",
                    [
                        *(python, "-m", "bench.studies.state_formats", "--device", "cuda"),
                        *("--results", str(results / "formats.json")),
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
