"""Transformers' Trainer and TRL's SFTTrainer with PEFT's LoRA and LoRA+, on two processes."""

from __future__ import annotations

import pytest

from tests.distributed.ranks import Ranks
from tests.tools import trainer_runs
from tests.tools.checks import check
from tests.tools.table import OPTIONS

TOOLS = {"Transformers": "transformers", "TRL, PEFT's LoRA": "lora", "TRL, PEFT's LoRA+": "lora+"}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("tool", TOOLS)
def test_trains_and_resumes(tool: str, option: str, ranks: Ranks) -> None:
    sentence = "in a DistributedDataParallel module"
    check(ranks, tool, option, sentence, trainer_runs.train, TOOLS[tool], True, rounding=1e-5)


@pytest.mark.parametrize("kind", TOOLS.values())
def test_it_clips(kind: str, ranks: Ranks) -> None:
    """The control of the runs above."""
    clipped, not_clipped = (ranks.run(2, trainer_runs.train, kind, clip, "plain", False)[0] for clip in (True, False))
    assert clipped.losses != not_clipped.losses
