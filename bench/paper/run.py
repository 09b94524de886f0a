"""Runs all units of work that have no result yet, in worker processes, with a progress bar."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from bench.paper import choices, early, robustness, theory
from bench.paper.sizes import Sizes
from bench.paper.training import threads
from bench.paper.units import Store, Unit

PARTS: dict[str, ModuleType] = {module.PART: module for module in (theory, early, robustness, choices)}


def plan(sizes: Sizes, device: str, parts: list[str]) -> list[Unit]:
    """All units, longest first, so that workers finish at about the same time."""
    found = []
    for part in parts:
        module = PARTS[part]
        found += theory.units(sizes) if module is theory else module.units(sizes, device)
    return sorted(found, key=lambda unit: -unit.seconds)


def work(unit: Unit) -> tuple[dict[str, Any], float, float]:
    """Runs in a worker: the result of a unit, with its wall-clock and CPU seconds."""
    threads(unit.settings.get("device", "cpu"))
    wall, cpu = time.monotonic(), time.process_time()
    result = PARTS[unit.part].run(unit.settings)
    return result, time.monotonic() - wall, time.process_time() - cpu


def clock(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"


@dataclass
class Run:
    """One call of the command.

    Attributes:
        computed: the units that this call did.
        cpu: seconds of CPU time in them.
    """

    sizes: Sizes
    device: str
    store: Store
    workers: int
    parts: list[str] = field(default_factory=lambda: list(PARTS))
    console: Console = field(default_factory=Console)
    computed: list[Unit] = field(default_factory=list)
    cpu: float = 0.0

    def start(self) -> None:
        units = plan(self.sizes, self.device, self.parts)
        todo = self.store.missing(units)
        left = sum(unit.seconds for unit in todo) / self.workers
        self.console.print(
            f"{self.sizes.name}: {len(todo)} of {len(units)} units to do, about {clock(left)} with {self.workers} "
            f"worker{'s' * (self.workers > 1)} on {self.device}",
            highlight=False,
        )
        began = time.monotonic()
        for unit, (result, wall, cpu) in self._results(todo):
            self.store.keep(unit, result, wall, cpu)
            self.computed.append(unit)
            self.cpu += cpu
        self.store.merge(units, self.sizes.name, self.workers)
        if todo:
            wall = time.monotonic() - began
            self.console.print(f"done in {clock(wall)}, {clock(self.cpu)} of CPU time", highlight=False)

    def _results(self, todo: list[Unit]) -> Iterator[tuple[Unit, tuple[dict[str, Any], float, float]]]:
        columns = (TextColumn("{task.description:<34}"), BarColumn(bar_width=None), TaskProgressColumn())
        with Progress(*columns, TimeElapsedColumn(), console=self.console, refresh_per_second=2) as bar:
            task = bar.add_task("", total=sum(unit.seconds for unit in todo) or 1.0)
            for count, (unit, found) in enumerate(self._done(todo), start=1):
                yield unit, found
                bar.update(task, advance=unit.seconds, description=f"{count}/{len(todo)} {unit.part}/{unit.name}"[:34])

    def _done(self, todo: list[Unit]) -> Iterator[tuple[Unit, tuple[dict[str, Any], float, float]]]:
        if self.workers == 1 or len(todo) < 2:
            for unit in todo:
                yield unit, work(unit)
            return
        # "spawn": a worker that is forked from a process with threads may hang.
        spawn = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self.workers, mp_context=spawn, initializer=_dies_quietly)
        try:
            with _one_thread():
                waiting = {pool.submit(work, unit): unit for unit in todo}
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(future), future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _dies_quietly() -> None:
    """Runs in a worker: Ctrl-C, which the terminal sends to all processes, ends it without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sets the number of OpenMP threads of processes started within: OpenMP reads the variable when it is loaded."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def results_folder(sizes: Sizes) -> Path:
    """The default folder of results: for the full sizes, the one in the repository."""
    root = Path(__file__).parents[2]
    return root / "bench" / "results" / "paper" if sizes.name == "full" else root / "build" / f"paper-{sizes.name}"
