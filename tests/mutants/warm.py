"""Runs the tests of a mutant in a fork of a process in which pytest has collected them already.

mutmut starts pytest again for each mutant. Here one process collects all tests once, and each of its forks runs some of
them: a mutant then takes a tenth of a second and what its tests take.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import _pytest.config
import pytest
from mutmut.mutation.trampoline import get_mutant_under_test
from mutmut.runners.harness import PytestRunner

from tests.mutants.order import function_of, in_order

SECONDS = 2.0
"""What the tests of one mutant may take, by their times without a mutant, unless MUTANT_SECONDS has another number."""
TIMES = Path("times.json")
"""In the folder `mutants`: how many seconds each test takes."""
KILLERS = Path("killers.txt")
"""In the folder `mutants`: a line for each mutant that was killed, with its function and the test that failed."""


class Times:
    """A plugin that adds up how long each test takes, with its fixtures."""

    def __init__(self, times: dict[str, float]) -> None:
        self.times = times

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.times[report.nodeid] += report.duration


class Failures:
    """A plugin that writes down which test has failed."""

    def __init__(self) -> None:
        self.first: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.first is None:
            self.first = report.nodeid


class WarmRunner(PytestRunner):
    """mutmut's runner of pytest, with one collection for all mutants."""

    session: pytest.Session | None = None
    times: dict[str, float] | None = None

    def warm_up(self) -> None:
        """In the process that will be forked."""
        os.chdir("mutants")
        arguments = ["--rootdir=.", "-x", "-q", "--tb=native", *self._pytest_add_cli_args]
        config = _pytest.config._prepareconfig([*arguments, *self._pytest_add_cli_args_test_selection])
        config._do_configure()
        self.session = pytest.Session.from_config(config)
        config.hook.pytest_sessionstart(session=self.session)
        config.hook.pytest_collection(session=self.session)
        self.items = {item.nodeid: item for item in self.session.items}
        self.seconds = json.loads(TIMES.read_text())
        os.chdir("..")
        self.import_what_steps_import()
        gc.collect()
        gc.freeze()  # or the first collection in each fork would copy every page

    @staticmethod
    def import_what_steps_import() -> None:
        """torch imports half of itself in the first step, which each fork would repeat."""
        import torch
        import torch._dynamo
        import torch.distributed.checkpoint.state_dict

        from radam_fused import FusedRAdam

        for options in ({}, {"flatten": True}, {"backend": "reference"}):
            p = torch.ones(3, requires_grad=True)
            optimizer = FusedRAdam([p], **options)
            p.grad = torch.ones(3)
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())

    def run_stats(self, *, tests: Iterable[str]) -> int:
        """Runs all tests without a mutant, and writes down how long each takes with its fixtures."""
        self.times: dict[str, float] | None = defaultdict(float)
        try:
            return super().run_stats(tests=tests)
        finally:
            times = Path("mutants") / TIMES
            known = json.loads(times.read_text()) if times.exists() else {}
            times.write_text(json.dumps({**known, **self.times}))
            self.times = None

    def execute_pytest(self, params: list[str], **kwargs: Any) -> int:
        """As mutmut's, with a plugin that takes the times."""
        if self.times is not None:
            kwargs["plugins"] = [*kwargs.get("plugins", []), Times(self.times)]
        return super().execute_pytest(params, **kwargs)

    def run_tests(self, *, mutant_name: str | None, tests: Iterable[str]) -> int:
        """In a fork: 1 where a test failed, 0 where none did."""
        if self.session is None:
            if not get_mutant_under_test():
                return 0  # the tests that are clean: collecting statistics has just run them all
            return super().run_tests(mutant_name=mutant_name, tests=tests)
        assert mutant_name == get_mutant_under_test()
        os.chdir("mutants")
        function = function_of(str(mutant_name))
        lines = [line.split(" ", 1) for line in KILLERS.read_text().splitlines()] if KILLERS.exists() else []
        killers = [test for name, test in lines if name == function]
        limit = float(os.environ.get("MUTANT_SECONDS", SECONDS))
        chosen = in_order((test for test in tests if test in self.items), self.seconds, killers, limit, function)
        self.session.items = [self.items[test] for test in chosen]
        failures = Failures()
        self.session.config.pluginmanager.register(failures)
        with contextlib.suppress(pytest.Session.Failed, pytest.Session.Interrupted):
            self.session.config.hook.pytest_runtestloop(session=self.session)
        if failures.first is None:
            return 0
        with KILLERS.open("a") as file:
            file.write(f"{function} {failures.first}\n")
        return 1
