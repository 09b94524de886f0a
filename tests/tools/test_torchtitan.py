"""torchtitan's OptimizersContainer, by two lines of the user's, over FSDP2 and with distributed checkpoints."""

from __future__ import annotations

import pytest

from tests.distributed.ranks import Ranks
from tests.tools import torchtitan_runs
from tests.tools.checks import check
from tests.tools.table import OPTIONS


@pytest.mark.parametrize("option", OPTIONS)
def test_trains_and_resumes(option: str, ranks: Ranks) -> None:
    check(ranks, "torchtitan", option, "memory is FSDP2's", torchtitan_runs.train, option != "step_in_backward")


def test_the_two_lines_are_needed() -> None:
    """The control: torchtitan itself knows no other optimizers than its own three."""
    with pytest.raises(NotImplementedError, match="FusedRAdam"):
        torchtitan_runs.OptimizersContainer._resolve_optimizer_factory("FusedRAdam")
