"""The stand-in for CUDA graphs itself: a capture runs nothing, and a replay everything."""

from __future__ import annotations

import pytest
import torch

from tests.support.fake_captures import Device


def test_a_capture_runs_nothing_and_a_replay_everything() -> None:
    """The stand-in itself."""
    p = torch.ones(3)
    device = Device([p])
    with device.capture() as graph:
        q = p * 2.0
        p += 1.0
    assert p.tolist() == [1.0] * 3
    assert q.isnan().all()
    for k in range(1, 3):
        q.fill_(5.0)
        graph.replay()
        assert p.tolist() == [1.0 + k] * 3
        assert q.tolist() == [2.0 * k] * 3


def test_memory_that_nothing_keeps_is_noticed() -> None:
    table = torch.ones(3)
    device = Device([table])
    with device.capture() as graph:
        table * 2.0
    graph.replay()
    del table
    with pytest.raises(AssertionError, match="freed"):
        graph.replay()
