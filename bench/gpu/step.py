"""``python -m bench.gpu.step --out FOLDER``: the benchmarks of one optimizer step on this machine's GPU.

Results are written again after every case, so that a run which is cut off leaves what it has.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any

import torch

from bench.gpu import check, clock, machine, measure, plot, report, targets
from bench.gpu.candidates import CONTESTANTS, Contestant
from bench.gpu.cases import CASES, DTYPES, SHOWN
from bench.gpu.clock import Clock
from bench.harness import machine as host_machine
from bench.workloads.cases import Case

BY_NAME = ("radam-single", "adam-fused", "optimi")
"""Peers that take part when they are named: each has a faster sibling, and time is short."""
LATER = 0.3
"""The part of the time that is kept for counting launches and for contestants that compile."""
PLOTTING = 15.0
"""Seconds that are kept for the plots, and for a step under way when the time is up."""


@dataclass
class Suite:
    """What a run is asked to measure.

    Attributes:
        cases, dtypes: by name.
        contestants: who takes part.
        out: backends that are not tried, with the reason.
        plan: how long to measure each.
        seconds: for everything.
    """

    cases: Sequence[str]
    dtypes: Sequence[str]
    contestants: Sequence[Contestant]
    plan: measure.Plan
    seconds: float
    out: dict[str, str] = field(default_factory=dict)

    def run(self, on: Clock, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Measures everything and returns the results; `keep` is called with them as they grow.

        An interrupt, or a GPU that answers nothing any more, ends the run; what was found until then is returned.
        """
        began = time.monotonic()
        found = self._empty()
        plan = replace(self.plan, ends=began + self.seconds)
        # Whoever compiles something first comes last: if that takes long, only they are missing.
        quick = [contestant for contestant in self.contestants if contestant.setup is None]
        slow = [contestant for contestant in self.contestants if contestant.setup is not None]
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
            "schema": report.SCHEMA,
            "suite": "gpu step",
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": host_machine.commit(),
            "gpu": machine.gpu(),
            "host": host_machine.machine(),
            "versions": machine.versions(),
            "method": {
                "warmup_steps": measure.WARMUP,
                "seconds_a_time": self.plan.seconds,
                "seed": measure.SEED,
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
        contestants: Sequence[Contestant],
        on: Clock,
        plan: measure.Plan,
        found: dict[str, Any],
        keep: Callable[[dict[str, Any]], None],
    ) -> None:
        """Times these contestants in every case, each between two yardsticks."""
        timing = measure.Attempts(found["missing"], plan.ends, self.out)

        def timed(contestant: Contestant, case: Case, dtype: str) -> dict[str, Any]:
            return measure.measure(contestant, case, dtype, on, plan)

        for dtype, case in product(self.dtypes, map(CASES.__getitem__, self.cases)):
            if not contestants:
                return
            if dtype not in case.dtypes:
                continue
            found["copies"].append(measure.yardstick(case, dtype, on, plan))
            rows = [timing.attempt(timed, contestant, case, dtype) for contestant in contestants]
            found["rows"] += [row for row in rows if row is not None]
            found["clocks_under_load"][f"{case.name} {dtype}"] = machine.query("clocks.sm", "clocks.mem", "power.draw")
            if any(rows):
                found["copies"].append(measure.yardstick(case, dtype, on, plan))
            keep(found)

    def _count(self, contestants: Sequence[Contestant], on: Clock, plan: measure.Plan, found: dict[str, Any]) -> None:
        """Counts what the steps of these contestants start, ours before theirs: for ours the time must suffice."""
        counting = measure.Attempts(found["uncounted"], plan.ends)

        def counted(contestant: Contestant, case: Case, dtype: str) -> dict[str, Any]:
            return measure.count(contestant, case, dtype, on, plan)

        by_name = {contestant.name: contestant for contestant in contestants}
        for row in sorted(found["rows"], key=lambda row: not row["ours"]):
            if row["contestant"] in by_name:
                counts = counting.attempt(counted, by_name[row["contestant"]], CASES[row["case"]], row["dtype"])
                report.add_counts(row, counts)


def smoke(backends: Sequence[str], device: str) -> dict[str, str]:
    """Backends whose short exercise fails in a process of its own, with the reason: they would end the run for all."""
    command = [sys.executable, "-m", "bench.gpu.sanitizer_workload", "--timed", "--device", device, "--backends"]
    started = [(backend, subprocess.Popen([*command, backend], stdout=PIPE, stderr=STDOUT)) for backend in backends]
    out = {}
    for backend, process in started:
        try:
            said, _ = process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            out[backend] = "its exercise, a few small steps, did not end within 90 s"
            continue
        if process.returncode != 0:
            last = said.decode(errors="replace").strip().splitlines()[-1:]
            out[backend] = f"its exercise, a few small steps, failed: {' '.join(last)}"[:400]
    return out


def write(found: dict[str, Any], folder: Path) -> None:
    """JSON and Markdown; the plots are made once, at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    report.write_json(found, folder / "gpu.json")
    plots = plot.NAMES if find_spec("matplotlib") else ()
    (folder / "gpu.md").write_text(report.markdown(found, targets.lines(found), plots))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.step", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=SHOWN, metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    names = list(CONTESTANTS)
    shown = [name for name in names if name not in BY_NAME]
    parser.add_argument("--contestants", nargs="+", choices=names, default=shown, metavar="NAME", help=", ".join(names))
    parser.add_argument("--seconds", type=float, default=220.0, help="for everything (%(default)s)")
    parser.add_argument("--seconds-a-time", type=float, default=measure.Plan.seconds, help="%(default)s")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str], on: Clock | None = None) -> int:
    options = parse(arguments)
    try:
        on = on or clock.current()
    except RuntimeError as error:
        print(f"nothing was measured: {error}")
        return 1
    began = time.monotonic()
    contestants = [CONTESTANTS[name] for name in options.contestants]
    out = smoke(sorted({c.backend for c in contestants if c.backend is not None}), on.device)
    seconds = options.seconds - (time.monotonic() - began) - PLOTTING
    suite = Suite(options.cases, options.dtypes, contestants, measure.Plan(options.seconds_a_time), seconds, out)
    with torch.no_grad():
        found = suite.run(on, keep=lambda found: write(found, options.out))
    try:
        plot.draw(found, options.out)
    except ImportError as error:
        print(f"no plots: {error}")
    print(report.terminal(found))
    wrong = report.wrong(found)
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
