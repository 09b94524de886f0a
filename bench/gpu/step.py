"""``python -m bench.gpu.step --out FOLDER``: the benchmarks of one optimizer step on this machine's GPU.

The result files are rewritten after every case, so that an interrupted run leaves its results so far.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any

import torch

from bench.gpu import check, clock, gpu_info, gpu_plots, gpu_tables, gpu_targets, timing
from bench.gpu.clock import Clock
from bench.harness import machine, results
from bench.harness.plan import Plan
from bench.optimizers.candidates import FIRST_STEPS, GPU_CANDIDATES, Candidate
from bench.workloads.cases import CASES, DTYPES, GPU_DEFAULT, Case

BY_NAME = ("radam-single", "adam-fused", "optimi")
"""Baselines that only run when they are named: a faster variant of each runs by default."""
LATER = 0.3
"""The part of the time that is reserved for counting launches and for candidates that compile."""
PLOTTING = 15.0
"""Seconds that are reserved for the plots, and for the step that runs when the time is up."""

MEMORY = 78 * 2**30
"""Bytes that a run holds at most: what a GPU of 80 GB has free."""


def lacking(case: Case, dtype: torch.dtype, most: int = MEMORY) -> str | None:
    """Why a case is skipped: FusedRAdam's arrays, or the two that the roofline copies, take more memory than this."""
    needed = max((2 * dtype.itemsize + 8) * case.elements, case.step_bytes(dtype))
    if needed <= most:
        return None
    return f"needs {needed / 2**30:.1f} GiB of memory, of {most / 2**30:.1f} GiB that a run may hold"


@dataclass
class Suite:
    """What a run measures.

    Attributes:
        cases, dtypes: by name.
        candidates: what is measured.
        plan: for each time of a candidate and case.
        seconds: for the whole run.
        out: backends that are not tried, with the reason.
    """

    cases: Sequence[str]
    dtypes: Sequence[str]
    candidates: Sequence[Candidate]
    plan: Plan
    seconds: float
    out: dict[str, str] = field(default_factory=dict)

    def run(self, on: Clock, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Measures everything and returns the results; `keep` is called with them as they grow.

        An interrupt, or a GPU that no longer responds, ends the run; the results so far are returned.
        """
        began = time.monotonic()
        found = self._empty()
        plan = replace(self.plan, ends=began + self.seconds)
        # Candidates that compile something come last: if that takes long, only they are missing.
        quick = [candidate for candidate in self.candidates if candidate.setup is None]
        slow = [candidate for candidate in self.candidates if candidate.setup is not None]
        try:
            self._time(quick, on, replace(plan, ends=began + (1.0 - LATER) * self.seconds), found, keep)
            self._count(quick, on, plan, found)
            self._time(slow, on, plan, found, keep)
            self._count(slow, on, plan, found)
        except (KeyboardInterrupt, RuntimeError) as error:
            found["ended_early"] = f"{type(error).__name__}: {error}".strip(": ")
        found["seconds"] = round(time.monotonic() - began, 1)
        keep(found)
        return found

    def _empty(self) -> dict[str, Any]:
        return {
            **results.about("gpu step", gpu_tables.SCHEMA),
            "gpu": gpu_info.gpu(),
            "host": machine.machine(),
            "versions": gpu_info.versions(),
            "method": {
                "first_steps": FIRST_STEPS,
                "seconds_a_time": self.plan.budget,
                "seed": self.plan.seed,
                "tolerance": check.TOLERANCE,
            },
            "cases": {
                name: {key: getattr(CASES[name], key) for key in ("title", "tensors", "elements")}
                for name in self.cases
            },
            "copies": [],
            "rows": [],
            "missing": [],
            "uncounted": [],
            "clocks_under_load": {},
        }

    def _time(
        self,
        candidates: Sequence[Candidate],
        on: Clock,
        plan: Plan,
        found: dict[str, Any],
        keep: Callable[[dict[str, Any]], None],
    ) -> None:
        """Times these candidates in every case, each case between two copies."""
        attempts = timing.Attempts(found["missing"], plan.ends, self.out)

        def timed(candidate: Candidate, case: Case, dtype: str) -> dict[str, Any]:
            return timing.measure(candidate, case, dtype, on, plan)

        for dtype, case in product(self.dtypes, map(CASES.__getitem__, self.cases)):
            if not candidates:
                return
            if dtype not in case.dtypes:
                continue
            short = lacking(case, DTYPES[dtype])
            if short is not None:
                for candidate in candidates:
                    attempts.skip(candidate, case, dtype, short)
                keep(found)
                continue
            found["copies"].append(timing.measure_copy(case, dtype, on, plan))
            rows = [attempts.attempt(timed, candidate, case, dtype) for candidate in candidates]
            found["rows"] += [row for row in rows if row is not None]
            found["clocks_under_load"][f"{case.name} {dtype}"] = gpu_info.query("clocks.sm", "clocks.mem", "power.draw")
            if any(rows):
                found["copies"].append(timing.measure_copy(case, dtype, on, plan))
            keep(found)

    def _count(self, candidates: Sequence[Candidate], on: Clock, plan: Plan, found: dict[str, Any]) -> None:
        """Counts what the steps of these candidates launch; ours come first, as their counts must not be missing."""
        attempts = timing.Attempts(found["uncounted"], plan.ends)

        def counted(candidate: Candidate, case: Case, dtype: str) -> dict[str, Any]:
            return timing.count(candidate, case, dtype, on, plan)

        by_name = {candidate.name: candidate for candidate in candidates}
        for row in sorted(found["rows"], key=lambda row: not row["ours"]):
            if row["candidate"] in by_name:
                counts = attempts.attempt(counted, by_name[row["candidate"]], CASES[row["case"]], row["dtype"])
                gpu_tables.add_counts(row, counts)


def smoke(backends: Sequence[str], device: str) -> dict[str, str]:
    """Runs the sanitizer workload of each backend in a separate process; returns those that fail, with the reason.

    A backend that crashes would end the run for all candidates.
    """
    command = [sys.executable, "-m", "bench.gpu.sanitizer_workload", "--timed", "--device", device, "--backends"]
    started = [(backend, subprocess.Popen([*command, backend], stdout=PIPE, stderr=STDOUT)) for backend in backends]
    out = {}
    for backend, process in started:
        try:
            said, _ = process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            out[backend] = "a few small steps did not end within 90 s"
            continue
        if process.returncode != 0:
            last = said.decode(errors="replace").strip().splitlines()[-1:]
            out[backend] = f"a few small steps failed: {' '.join(last)}"[:400]
    return out


def write(found: dict[str, Any], folder: Path) -> None:
    """Writes JSON and Markdown; the plots are drawn once, at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    results.write(found, folder / "gpu.json")
    plots = gpu_plots.NAMES if find_spec("matplotlib") else ()
    (folder / "gpu.md").write_text(gpu_tables.document(found, gpu_targets.lines(found), plots).markdown())


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.step", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--cases", nargs="+", choices=list(CASES), default=GPU_DEFAULT, metavar="NAME", help=", ".join(CASES)
    )
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    names = list(GPU_CANDIDATES)
    shown = [name for name in names if name not in BY_NAME]
    parser.add_argument("--candidates", nargs="+", choices=names, default=shown, metavar="NAME", help=", ".join(names))
    parser.add_argument("--seconds", type=float, default=220.0, help="for the whole run (%(default)s)")
    parser.add_argument("--seconds-a-time", type=float, default=timing.PLAN.budget, help="%(default)s")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str], on: Clock | None = None) -> int:
    options = parse(arguments)
    try:
        on = on or clock.current()
    except RuntimeError as error:
        print(f"nothing was measured: {error}")
        return 1
    if on.device.startswith("cuda"):
        _, total = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction(min(1.0, MEMORY / total))
    began = time.monotonic()
    candidates = [GPU_CANDIDATES[name] for name in options.candidates]
    out = smoke(sorted({c.backend for c in candidates if c.backend is not None}), on.device)
    seconds = options.seconds - (time.monotonic() - began) - PLOTTING
    suite = Suite(
        options.cases, options.dtypes, candidates, replace(timing.PLAN, budget=options.seconds_a_time), seconds, out
    )
    with torch.no_grad():
        found = suite.run(on, keep=lambda found: write(found, options.out))
    try:
        gpu_plots.draw(found, options.out)
    except ImportError as error:
        print(f"no plots: {error}")
    print(gpu_tables.document(found).text())
    wrong = gpu_tables.wrong(found)
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
