"""One set of processes for all distributed tests of a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.distributed.ranks import Ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Up to four real processes: see ranks.py."""
    pool = Ranks()
    yield pool
    pool.stop()
