"""The grid of the CUDA kernel: how many blocks it gets, timed in a process each, as the library reads that once.

``python -m bench.gpu.tune_cuda`` is such a process; `tune` starts one for every size of grid and puts them together.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from bench.gpu import clock, measure
from bench.gpu.cases import CASES, DTYPES

VARIABLE = "RADAM_FUSED_CUDA_BLOCKS"
BLOCKS_PER_SM = (0, 1, 2, 3, 4, 5, 6, 8, 16)
"""0 leaves the choice to the library: as many as the device holds at once."""


def time_cases(backend: str, cases: Sequence[str], dtypes: Sequence[str], on: clock.Clock) -> list[dict[str, Any]]:
    """One entry a case and dtype, as `bench.gpu.tune.time_step` gives it."""
    from bench.gpu.tune import time_step

    plan = measure.Plan(seconds=0.1)
    return [
        {"case": case, "dtype": dtype, **time_step(backend, CASES[case], dtype, on, plan)}
        for dtype, case in itertools.product(dtypes, cases)
    ]


def _one(blocks: int, cases: Sequence[str], dtypes: Sequence[str], seconds: float) -> list[dict[str, Any]]:
    """What a process of its own finds; nothing, and a line that says why, where it fails."""
    command = [sys.executable, "-m", "bench.gpu.tune_cuda", "--cases", *cases, "--dtypes", *dtypes]
    environment = {**os.environ, **({VARIABLE: str(blocks)} if blocks else {})}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=seconds)
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        print(f"{blocks} blocks: {(error.stderr.strip().splitlines() or ['no output'])[-1]}")
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        print(f"{blocks} blocks: {type(error).__name__}")
    return []


def tune(
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
            print(f"out of time: {count} blocks a multiprocessor and more were not tried")
            break
        for row in _one(count * multiprocessors, cases, dtypes, left):
            place = row.pop("case"), row.pop("dtype")
            found[place].append({"BLOCKS_PER_SM": count, **row})
    return found


def main(arguments: Sequence[str], on: clock.Clock | None = None, backend: str = "cuda") -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.tune_cuda", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), required=True)
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), required=True)
    options = parser.parse_args(arguments)
    with torch.no_grad():
        print(json.dumps(time_cases(backend, options.cases, options.dtypes, on or clock.current())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
