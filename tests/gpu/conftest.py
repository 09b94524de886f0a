"""Tests that need a GPU, with Triton compiled for it: ``make gpu`` runs them, and fails where none ran.

Where torch sees no GPU they are not collected, and a line at the end of the run says so.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

REASON = None if torch.cuda.is_available() else "torch sees no CUDA GPU"
if REASON is not None:
    collect_ignore_glob = ["test_*.py"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if REASON is not None:
        terminalreporter.write_line(f"tests/gpu was not collected: {REASON}")


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    """The backends of a GPU. One that should run here and does not fails its tests."""
    from bench.gpu.installed import due
    from radam_fused import available_backends

    reason = available_backends()[request.param]
    if reason is not None and due(request.param):
        pytest.fail(f"{request.param} should run here: {reason}")
    if reason is not None:
        pytest.skip(reason)
    return request.param


@pytest.fixture(autouse=True)
def _compiled() -> None:
    """A kernel that is interpreted proves nothing about a GPU."""
    from radam_fused.backends.triton import availability

    assert not availability.interpreted(), "TRITON_INTERPRET is set: unset it for tests/gpu"


@pytest.fixture(autouse=True)
def _tidy() -> Iterator[None]:
    """What one test leaves must not be another's peak, and an asynchronous error belongs to the test that caused it."""
    torch.cuda.empty_cache()
    yield
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("default")
