"""Fixtures of the tests of kernels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Restores torch's number of threads after a test that sets it."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
