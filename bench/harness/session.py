"""One run of the suite: what it was asked for, what it shows while it works, and what it found."""

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

from bench.harness.interleave import Measurement, Plan, Progress
from bench.harness.training_steps import SHOWN, Trained
from bench.optimizers.baselines import PEERS
from bench.workloads.cases import chosen

SUITES = [Path(__file__).with_name(name) for name in ("test_step.py", "test_training.py")]


def _console() -> Console:
    """As wide as the tables where the output is a file."""
    console = Console()
    return console if console.is_terminal else Console(width=110)


@dataclass(eq=False)
class Run:
    """A pytest plugin that carries the options to the suites, and what they find back.

    Attributes:
        cases, models, peers: by name.
        measurements, trained: one a case and one a model, as they come.
        skipped: by case or model, why it was not measured.
        failures: what failed, one text a test.
    """

    cases: list[str] = field(default_factory=lambda: chosen(["default"]))
    models: list[str] = field(default_factory=lambda: list(SHOWN))
    peers: list[str] = field(default_factory=lambda: list(PEERS))
    plan: Plan = field(default_factory=Plan)
    console: Console = field(default_factory=_console)
    measurements: list[Measurement] = field(default_factory=list)
    trained: list[Trained] = field(default_factory=list)
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
        """Runs the suites in this process and returns pytest's exit status.

        pytest is to say nothing (the progress bar and the tables are what there is to see) and to leave aside what the
        project's tests are configured with.
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
        """A progress bar over one case."""
        columns = (
            TextColumn("{task.description:<34}"),
            TextColumn("{task.fields[doing]:<16}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        # No thread of its own, which would draw during a timed step: it is drawn between steps, now and then.
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
