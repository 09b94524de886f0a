"""``python -m bench.gpu.tune``: times the GPU's backends over grids of settings, on scratch data.

Triton's settings are constants of its module, which are changed in this process only. The CUDA kernel has one setting
that is not compiled in, the number of blocks of its grid. The library reads it once, so every number is timed in a
process of its own (``--one-grid``). The optimizer never tunes itself during training: a kernel that updates in place
must not run on live state for the sake of its time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bench.gpu import clock, gpu_tables, timing
from bench.gpu.clock import Clock
from bench.harness import results
from bench.harness.plan import Plan
from bench.optimizers.candidates import on_gpu
from bench.report.document import plain
from bench.workloads.cases import CASES, DTYPES, Case
from radam_fused import available_backends
from radam_fused.backends.triton import step as backend

# Constants of radam_fused.backends.triton.step.
GRID = {"TILE": (512, 1024, 2048, 4096), "WARPS": (4, 8), "PROGRAMS_PER_SM": (4, 8, 16, 32)}
SHOWN = 8
"""Settings that are printed per case."""
CUDA_PART = 0.35
"""The part of the time that is reserved for the CUDA kernel."""
VARIABLE = "RADAM_FUSED_CUDA_BLOCKS"
BLOCKS_PER_SM = (0, 1, 2, 3, 4, 5, 6, 8, 16)
"""The CUDA kernel's grids; 0 leaves the choice to the library: as many as the device holds at once."""
PLAN = Plan(budget=0.1, most=50)
"""Of each setting's time."""


@contextmanager
def settings(**values: int) -> Iterator[None]:
    """The Triton backend with other constants, and the constant that depends on them.

    Raises:
        AttributeError: the backend has no such constant.
    """
    values = {**values, "SLICE": 32 * values.get("WARPS", backend.WARPS)}
    before = {name: getattr(backend, name) for name in values}
    for name, value in values.items():
        setattr(backend, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(backend, name, value)


def combinations(grid: dict[str, Sequence[int]]) -> list[dict[str, int]]:
    """All settings in which a thread has at least one 128-bit access and at most 32 elements."""
    every = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    return [s for s in every if 4 <= s.get("TILE", 1024) // (32 * s.get("WARPS", 4)) <= 32]


def time_step(name: str, case: Case, dtype: str, on: Clock, plan: Plan) -> dict[str, Any]:
    """GPU milliseconds and bandwidth of a backend's step with its present settings."""
    runner = timing.start(on_gpu(name, flatten=False), case, DTYPES[dtype], on, plan)
    once = statistics.median(clock.looped(on, runner.step, 1, 3))
    host = statistics.median(clock.host(on, runner.step, 5))
    busy = on.busy(runner.step, plan.count(once), host)
    del runner
    timing.release()
    ms = timing.summary(busy, 1e3)
    moved = case.step_bytes(DTYPES[dtype])
    return {"ms": ms, "gb_per_s": float(f"{moved / ms['median'] / 1e6:.5g}") if ms else None}


def _sorted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: row["ms"]["median"] if row["ms"] else float("inf"))


def tune_triton(
    cases: Sequence[Case], dtypes: Sequence[str], grid: dict[str, Sequence[int]], on: Clock, seconds: float
) -> list[dict[str, Any]]:
    """One entry per case and dtype: the copy's bandwidth, the settings from fastest to slowest, the number left out."""
    ends = time.monotonic() + seconds
    found = []
    for case, dtype in itertools.product(cases, dtypes):
        copied = timing.measure_copy(case, dtype, on, PLAN)
        todo = combinations(grid)
        rows = []
        while todo and time.monotonic() < ends:
            setting = todo.pop(0)
            with settings(**setting):
                rows.append({**setting, **time_step("triton", case, dtype, on, PLAN)})
        rate = copied["bytes"] / copied["ms"]["median"] / 1e6
        entry = {"backend": "triton", "case": case.name, "dtype": dtype, "copy_gb_per_s": float(f"{rate:.5g}")}
        found.append({**entry, "left_out": len(todo), "settings": _sorted(rows)})
    return found


def time_cuda(cases: Sequence[str], dtypes: Sequence[str], on: Clock, backend: str = "cuda") -> list[dict[str, Any]]:
    """Times the CUDA kernel with this process's grid: one entry per case and dtype."""
    return [
        {"case": case, "dtype": dtype, **time_step(backend, CASES[case], dtype, on, PLAN)}
        for dtype, case in itertools.product(dtypes, cases)
    ]


def _one_grid(blocks: int, cases: Sequence[str], dtypes: Sequence[str], seconds: float) -> list[dict[str, Any]]:
    """Runs `time_cuda` in a process with this grid; if it fails, prints why and returns nothing."""
    command = [sys.executable, "-m", "bench.gpu.tune", "--one-grid", "--cases", *cases, "--dtypes", *dtypes]
    environment = {**os.environ, **({VARIABLE: str(blocks)} if blocks else {})}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=seconds)
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        print(f"{blocks} blocks: {(error.stderr.strip().splitlines() or ['no output'])[-1]}")
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        print(f"{blocks} blocks: {type(error).__name__}")
    return []


def cuda_grids(
    cases: Sequence[str],
    dtypes: Sequence[str],
    multiprocessors: int,
    seconds: float,
    per_sm: Sequence[int] = BLOCKS_PER_SM,
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """By case and dtype, the grids that were tried before the time was up."""
    ends = time.monotonic() + seconds
    found: dict[tuple[str, str], list[dict[str, Any]]] = {pair: [] for pair in itertools.product(cases, dtypes)}
    for count in per_sm:
        left = ends - time.monotonic()
        if left < 5.0:
            print(f"out of time: {count} blocks per multiprocessor and more were not tried")
            break
        for row in _one_grid(count * multiprocessors, cases, dtypes, left):
            place = row.pop("case"), row.pop("dtype")
            found[place].append({"BLOCKS_PER_SM": count, **row})
    return found


def tune_cuda(
    triton: list[dict[str, Any]], cases: Sequence[str], dtypes: Sequence[str], seconds: float
) -> list[dict[str, Any]]:
    """As `tune_triton` for the CUDA kernel; the copies are those that were timed with Triton's settings."""
    reason = available_backends()["cuda"]
    if reason is not None:
        print(f"cuda was not tuned: {reason}")
        return []
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    found = cuda_grids(cases, dtypes, multiprocessors, seconds)
    rates = {(entry["case"], entry["dtype"]): entry["copy_gb_per_s"] for entry in triton}
    return [
        {
            "backend": "cuda",
            "case": case,
            "dtype": dtype,
            "copy_gb_per_s": rates[case, dtype],
            "left_out": len(BLOCKS_PER_SM) - len(rows),
            "settings": _sorted(rows),
        }
        for (case, dtype), rows in found.items()
    ]


def text(found: Sequence[dict[str, Any]]) -> str:
    """The fastest settings of each case and dtype, in lines."""
    lines = []
    for entry in found:
        lines.append(f"{entry['backend']}, {entry['case']} {entry['dtype']}, copy {plain(entry['copy_gb_per_s'])} GB/s")
        for row in entry["settings"][:SHOWN]:
            values = ", ".join(f"{name} {value}" for name, value in row.items() if name not in ("ms", "gb_per_s"))
            if row["ms"]:
                part = 100 * row["gb_per_s"] / entry["copy_gb_per_s"]
                lines.append(f"  {plain(row['ms']['median'])} ms, {part:.1f} % of copy: {values}")
        if entry["left_out"]:
            lines.append(f"  {entry['left_out']} settings were not timed")
    return "\n".join(lines)


def main(arguments: Sequence[str], on: Clock | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.tune", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(), help="folder of tune.json (%(default)s)")
    parser.add_argument("--one-grid", action="store_true", help="only time the CUDA kernel with this process's grid")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=["256M", "gpt2"], metavar="NAME")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--seconds", type=float, default=200.0, help="for the whole run (%(default)s)")
    for name, values in GRID.items():
        parser.add_argument(f"--{name.lower().replace('_', '-')}", type=int, nargs="+", default=values, dest=name)
    parser.add_argument("--backends", nargs="+", choices=["triton", "cuda"], default=["triton", "cuda"])
    options = parser.parse_args(arguments)
    ends = time.monotonic() + options.seconds - 10.0
    try:
        on = on or clock.current()
    except RuntimeError as error:
        print(f"nothing was tuned: {error}")
        return 1
    if options.one_grid:
        with torch.no_grad():
            print(json.dumps(time_cuda(options.cases, options.dtypes, on)))
        return 0
    grid = {name: getattr(options, name) for name in GRID}
    cases = [CASES[name] for name in options.cases]
    reason = available_backends()["triton"] if "triton" in options.backends else "not asked for"
    # Without Triton there is no time for its settings, and only the copies are timed.
    with torch.no_grad():
        seconds = CUDA_PART * options.seconds if "cuda" in options.backends else 0.0
        found = tune_triton(cases, options.dtypes, grid, on, 0.0 if reason else ends - time.monotonic() - seconds)
    if reason:
        print(f"triton was not tuned: {reason}")
        for entry in found:
            entry["left_out"] = 0
    if "cuda" in options.backends:
        found += tune_cuda(found, options.cases, options.dtypes, ends - time.monotonic())
    options.out.mkdir(parents=True, exist_ok=True)
    results.write({"schema": gpu_tables.SCHEMA, "suite": "gpu tune", "results": found}, options.out / "tune.json")
    print(text(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
