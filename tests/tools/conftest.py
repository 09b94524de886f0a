"""Tools that people train large models with, each for real: `make tools` installs and runs them.

`make test` leaves this folder out (``norecursedirs`` in pyproject.toml). A tool that is missing is an error here.
"""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # before DeepSpeed is imported; the processes of `Ranks` inherit it

from collections.abc import Iterator

import pytest

from tests.distributed.ranks import Ranks
from tests.tools.table import lines


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Two processes, in one process group for the whole session: tools keep the groups that they have made."""
    pool = Ranks(2, one_group=True, seconds=300.0)
    yield pool
    pool.stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the table that the tests have gone through."""
    terminalreporter.write_sep("-", "radam_fused in other tools")
    for line in lines():
        terminalreporter.write_line(line)
