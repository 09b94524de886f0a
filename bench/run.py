"""One run of the suite: what it was asked for, what it shows while it works, and what it found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.cases import CASES
from bench.measure import Measurement, Plan
from bench.peers import CONTESTANTS

SUITE = Path(__file__).with_name("test_step.py")


@dataclass(eq=False)
class Run:
    """A pytest plugin that carries the options to the suite, and its measurements back.

    Attributes:
        cases, contestants: by name.
        measurements: one a case, as they come.
        skipped: by case, why it was not measured.
        failures: what failed, one text a test.
    """

    cases: list[str] = field(default_factory=lambda: [name for name, case in CASES.items() if case.shown])
    contestants: list[str] = field(default_factory=lambda: list(CONTESTANTS))
    plan: Plan = field(default_factory=Plan)
    console: Console = field(default_factory=Console)
    measurements: list[Measurement] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, config: pytest.Config) -> Run:
        """The run that this pytest session belongs to; one with the defaults, where pytest was called by itself."""
        for plugin in config.pluginmanager.get_plugins():
            if isinstance(plugin, cls):
                return plugin
        run = cls()
        config.pluginmanager.register(run)
        return run

    def start(self, pytest_arguments: list[str]) -> int:
        """Runs the suite in this process and returns pytest's exit status.

        pytest is to say nothing (the progress bar and the tables are what there is to see) and to leave aside what the
        project's tests are configured with.
        """
        quiet = ["-p", "no:terminal", "-p", "no:cacheprovider", "-p", "no:xdist", "--capture=no", "--benchmark-quiet"]
        plain = ["--override-ini=addopts=", "--noconftest", "--import-mode=importlib"]
        return int(pytest.main([str(SUITE), *quiet, *plain, *pytest_arguments], plugins=[self]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failures.append(report.longreprtext)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failures.append(report.longreprtext)

    @contextmanager
    def progress(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """A progress bar over the steps of a case."""
        columns = (
            TextColumn("{task.description:<26}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        # No thread of its own, which would draw during a timed step: it is drawn between steps, now and then.
        with Progress(*columns, console=self.console, auto_refresh=False) as bar:
            task = bar.add_task(title, total=None)
            drawn = 0.0

            def update(done: int, total: int) -> None:
                nonlocal drawn
                now = time.monotonic()
                due = done == total or now - drawn > 0.2
                drawn = now if due else drawn
                bar.update(task, completed=done, total=total, refresh=due)

            yield update
