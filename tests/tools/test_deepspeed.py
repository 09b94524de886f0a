"""DeepSpeed: ZeRO 0 to 3, fp32 and bf16, sub-groups, gradient_clipping, checkpoints; and no new layout in a step."""

from __future__ import annotations

import pytest

from tests.distributed.ranks import Ranks
from tests.tools import deepspeed_runs
from tests.tools.checks import check
from tests.tools.small import SAVED_AT, STEPS
from tests.tools.table import OPTIONS

FP32, BF16 = 2e-6, 5e-4
"""How far losses may be from torch.optim.RAdam's: one master weight may round to another bfloat16."""
SENTENCES = {"max_grad_norm": "gradient_clipping", "step_in_backward": "step after the backward pass"}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("stage", range(4))
def test_trains_and_resumes(stage: int, bf16: bool, option: str, ranks: Ranks) -> None:
    tool = "DeepSpeed, ZeRO 1 to 3" if stage else f"DeepSpeed, ZeRO 0, {'bf16' if bf16 else 'fp32'}"
    check(
        ranks,
        tool,
        option,
        SENTENCES.get(option, ""),
        deepspeed_runs.train,
        stage,
        bf16,
        rounding=BF16 if bf16 else FP32,
    )


@pytest.mark.parametrize("stage", range(1, 4))
def test_it_clips(stage: int, ranks: Ranks) -> None:
    """The control of the runs above: without gradient_clipping they are others."""
    clipped, not_clipped = (ranks.run(2, deepspeed_runs.train, stage, False, "plain", False, c)[0] for c in (0.1, 0.0))
    assert abs(clipped.losses[-1] - not_clipped.losses[-1]) > 1e-3


@pytest.mark.parametrize("stage", range(1, 4))
def test_a_checkpoint_without_the_optimizers_state_is_noticed(stage: int, ranks: Ranks) -> None:
    """The negative control of resuming with the same bits."""
    for forgetful, whole in ranks.run(2, deepspeed_runs.forgetful, stage):
        assert len(forgetful) == STEPS - SAVED_AT
        assert forgetful != whole


def test_layouts_are_counted(ranks: Ranks) -> None:
    """The negative control of "no new layout in a step"."""
    assert ranks.run(2, deepspeed_runs.swapped) == [STEPS, STEPS]
