"""Stages of torch.distributed.pipelining, each with an optimizer of its own."""

from __future__ import annotations

import pytest

from tests.distributed.ranks import Ranks
from tests.tools import pipeline_runs
from tests.tools.checks import check
from tests.tools.table import OPTIONS


@pytest.mark.parametrize("option", OPTIONS)
def test_trains_and_resumes(option: str, ranks: Ranks) -> None:
    tool = "torch.distributed.pipelining"
    check(ranks, tool, option, "", pipeline_runs.train, option != "step_in_backward")


def test_it_clips(ranks: Ranks) -> None:
    """The control of the runs above."""
    clipped, not_clipped = (ranks.run(2, pipeline_runs.train, clip, "plain", False)[0] for clip in (True, False))
    assert clipped.losses != not_clipped.losses
