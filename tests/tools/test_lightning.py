"""Lightning with manual optimization under DistributedDataParallel, and its FSDPStrategy."""

from __future__ import annotations

import pytest

from tests.distributed.ranks import Failed, Ranks
from tests.tools import lightning_runs
from tests.tools.checks import check
from tests.tools.table import OPTIONS


@pytest.mark.parametrize("option", OPTIONS)
def test_trains_and_resumes(option: str, ranks: Ranks) -> None:
    tool = "Lightning, manual optimization"
    check(ranks, tool, option, "in a DistributedDataParallel module", lightning_runs.train, True)


def test_it_clips(ranks: Ranks) -> None:
    """The control of the runs above."""
    clipped, not_clipped = (ranks.run(2, lightning_runs.train, clip, "plain", False)[0] for clip in (True, False))
    assert clipped.losses != not_clipped.losses


@pytest.mark.parametrize("theirs", [False, True], ids=["ours", "torch.optim.RAdam"])
def test_its_fsdp_strategy_is_for_gpus(theirs: bool, ranks: Ranks) -> None:
    """Why the row has nothing to try."""
    for outcome in ranks.outcomes(2, lightning_runs.fully_sharded, "plain", theirs):
        assert isinstance(outcome, Failed)
        assert "requires a GPU accelerator" in outcome.message
