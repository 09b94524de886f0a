"""Accelerate with two processes, plain and with FSDP2: save_state and load_state."""

from __future__ import annotations

import pytest

from tests.distributed.ranks import Ranks
from tests.tools import accelerate_runs
from tests.tools.checks import check
from tests.tools.table import OPTIONS

SENTENCES = {"flatten": "memory is FSDP2's", "step_in_backward": "in a DistributedDataParallel module"}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("fsdp", [False, True], ids=["plain", "FSDP2"])
def test_trains_and_resumes(fsdp: bool, option: str, ranks: Ranks) -> None:
    tool, clip = "Accelerate, FSDP2" if fsdp else "Accelerate", option != "step_in_backward"
    check(ranks, tool, option, SENTENCES.get(option, ""), accelerate_runs.train, fsdp, clip)
