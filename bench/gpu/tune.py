"""``python -m bench.gpu.tune``: times the backends of a GPU over grids of settings, on scratch data.

Triton's settings are constants of its module, changed in this process alone; the CUDA kernel's is the size of its grid
(`bench.gpu.tune_cuda`), all else being compiled in. Nothing tunes by itself when somebody trains: a kernel that updates
in place must not be run for its time on live state.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bench.gpu import clock, measure, report, tune_cuda
from bench.gpu.candidates import fused
from bench.gpu.cases import CASES, DTYPES, pass_bytes
from bench.gpu.clock import Clock
from bench.workloads.cases import Case
from radam_fused import available_backends
from radam_fused.backends.triton import step as backend

# Constants of radam_fused.backends.triton.step.
GRID = {"TILE": (512, 1024, 2048, 4096), "WARPS": (4, 8), "PROGRAMS_PER_SM": (4, 8, 16, 32)}
SHOWN = 8
"""Settings of each case that are printed."""
CUDA_PART = 0.35
"""Of the time, what is kept for the CUDA kernel."""


@contextmanager
def settings(**values: int) -> Iterator[None]:
    """The backend with other constants, and what depends on them.

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
    """Every setting of a grid in which a thread has at least one 128-bit access and at most 32 elements."""
    every = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    return [s for s in every if 4 <= s.get("TILE", 1024) // (32 * s.get("WARPS", 4)) <= 32]


def time_step(name: str, case: Case, dtype: str, on: Clock, plan: measure.Plan) -> dict[str, Any]:
    """GPU milliseconds of a step of a backend as it is set now."""
    runner = measure.start(fused(name, flatten=False), case, DTYPES[dtype], on)
    once = statistics.median(clock.looped(on, runner.step, 1, 3))
    host = statistics.median(clock.host(on, runner.step, 5))
    busy = on.busy(runner.step, plan.count(once), host)
    del runner
    measure.release()
    ms = measure.quartiles(busy, 1e3)
    moved = pass_bytes(case, DTYPES[dtype], torch.float32)
    return {"ms": ms, "gb_per_s": float(f"{moved / ms['median'] / 1e6:.5g}") if ms else None}


def _sorted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: row["ms"]["median"] if row["ms"] else float("inf"))


def tune(
    cases: Sequence[Case], dtypes: Sequence[str], grid: dict[str, Sequence[int]], on: Clock, seconds: float
) -> list[dict[str, Any]]:
    """One entry a case and dtype: the copy's rate, the settings from fastest to slowest, and how many were left out."""
    ends = time.monotonic() + seconds
    plan = measure.Plan(seconds=0.1)
    results = []
    for case, dtype in itertools.product(cases, dtypes):
        copied = measure.yardstick(case, dtype, on, plan)
        todo = combinations(grid)
        rows = []
        while todo and time.monotonic() < ends:
            setting = todo.pop(0)
            with settings(**setting):
                rows.append({**setting, **time_step("triton", case, dtype, on, plan)})
        rate = copied["bytes"] / copied["ms"]["median"] / 1e6
        entry = {"backend": "triton", "case": case.name, "dtype": dtype, "copy_gb_per_s": float(f"{rate:.5g}")}
        results.append({**entry, "left_out": len(todo), "settings": _sorted(rows)})
    return results


def _tune_cuda(
    triton: list[dict[str, Any]], cases: Sequence[str], dtypes: Sequence[str], seconds: float
) -> list[dict[str, Any]]:
    """The same for the CUDA kernel, beside the copies that were timed with Triton's settings."""
    reason = available_backends()["cuda"]
    if reason is not None:
        print(f"cuda was not tuned: {reason}")
        return []
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    found = tune_cuda.tune(cases, dtypes, multiprocessors, seconds)
    rates = {(entry["case"], entry["dtype"]): entry["copy_gb_per_s"] for entry in triton}
    return [
        {
            "backend": "cuda",
            "case": case,
            "dtype": dtype,
            "copy_gb_per_s": rates[case, dtype],
            "left_out": len(tune_cuda.BLOCKS_PER_SM) - len(rows),
            "settings": _sorted(rows),
        }
        for (case, dtype), rows in found.items()
    ]


def text(results: Sequence[dict[str, Any]]) -> str:
    lines = []
    for entry in results:
        lines.append(
            f"{entry['backend']}, {entry['case']} {entry['dtype']}, copy {report.plain(entry['copy_gb_per_s'])} GB/s"
        )
        for row in entry["settings"][:SHOWN]:
            values = ", ".join(f"{name} {value}" for name, value in row.items() if name not in ("ms", "gb_per_s"))
            if row["ms"]:
                part = 100 * row["gb_per_s"] / entry["copy_gb_per_s"]
                lines.append(f"  {report.plain(row['ms']['median'])} ms, {part:.1f} % of copy: {values}")
        if entry["left_out"]:
            lines.append(f"  {entry['left_out']} settings were not timed")
    return "\n".join(lines)


def main(arguments: Sequence[str], on: Clock | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.tune", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of tune.json")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=["256M", "gpt2"], metavar="NAME")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--seconds", type=float, default=200.0, help="for everything (%(default)s)")
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
    grid = {name: getattr(options, name) for name in GRID}
    cases = [CASES[name] for name in options.cases]
    reason = available_backends()["triton"] if "triton" in options.backends else "not asked for"
    # Without Triton the grid is empty, and the copies alone are timed.
    with torch.no_grad():
        seconds = CUDA_PART * options.seconds if "cuda" in options.backends else 0.0
        results = tune(cases, options.dtypes, grid, on, 0.0 if reason else ends - time.monotonic() - seconds)
    if reason:
        print(f"triton was not tuned: {reason}")
        for entry in results:
            entry["left_out"] = 0
    if "cuda" in options.backends:
        results += _tune_cuda(results, options.cases, options.dtypes, ends - time.monotonic())
    options.out.mkdir(parents=True, exist_ok=True)
    report.write_json({"schema": report.SCHEMA, "suite": "gpu tune", "results": results}, options.out / "tune.json")
    print(text(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
