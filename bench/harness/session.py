"""One run of the CPU suite under pytest: its options, its progress bar and its results."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Progressbar

from bench.harness.interleave import Measurement
from bench.harness.measure import Progress
from bench.harness.plan import Plan
from bench.harness.training_steps import SHOWN, Trained
from bench.optimizers.baselines import BASELINES
from bench.workloads.cases import chosen

SUITES = [Path(__file__).with_name(name) for name in ("test_step.py", "test_training.py")]


def _console() -> Console:
    """A console; where the output is a file, as wide as the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=110)


@dataclass(eq=False)
class Run:
    """A pytest plugin that passes the options to the suites and collects their results.

    Attributes:
        cases, models, baselines: by name.
        measurements, trained: one per case and one per model, in the order of measuring.
        skipped: by case or model, why it was not measured.
        failures: the report of each test that failed.
    """

    cases: list[str] = field(default_factory=lambda: chosen(["default"]))
    models: list[str] = field(default_factory=lambda: list(SHOWN))
    baselines: list[str] = field(default_factory=lambda: list(BASELINES))
    plan: Plan = field(default_factory=Plan)
    console: Console = field(default_factory=_console)
    measurements: list[Measurement] = field(default_factory=list)
    trained: list[Trained] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, config: pytest.Config) -> Run:
        """This pytest session's run; one with the default options where pytest was not started by `start`."""
        for plugin in config.pluginmanager.get_plugins():
            if isinstance(plugin, cls):
                return plugin
        run = cls()
        config.pluginmanager.register(run)
        return run

    def start(self, pytest_arguments: list[str]) -> int:
        """Runs the suites in this process and returns pytest's exit status.

        pytest prints nothing, as the progress bar and the tables are the output, and ignores the configuration of the
        project's tests.
        """
        quiet = ["-p", "no:terminal", "-p", "no:cacheprovider", "-p", "no:xdist", "--capture=no", "--benchmark-quiet"]
        plain = ["--override-ini=addopts=", "--noconftest", "--import-mode=importlib"]
        suites = [str(suite) for suite, has in zip(SUITES, (self.cases, self.models), strict=True) if has]
        return int(pytest.main([*suites, *quiet, *plain, *pytest_arguments], plugins=[self]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failures.append(report.longreprtext)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failures.append(report.longreprtext)

    @contextmanager
    def progress(self, title: str) -> Iterator[Progress]:
        """A progress bar for one case."""
        columns = (
            TextColumn("{task.description:<34}"),
            TextColumn("{task.fields[doing]:<16}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        # No refresh thread, which would draw during a timed step: the bar is drawn between steps.
        with Progressbar(*columns, console=self.console, auto_refresh=False) as bar:
            task = bar.add_task(title, total=None, doing="")
            drawn, last = 0.0, ""

            def update(doing: str, done: int, total: int) -> None:
                nonlocal drawn, last
                now = time.monotonic()
                due = done == total or doing != last or now - drawn > 0.2
                drawn, last = (now if due else drawn), doing
                bar.update(task, completed=done, total=total, doing=doing, refresh=due)

            yield update
