"""Megatron-Core's optimizers around ours: fp32, bf16 with masters, gradient clipping, checkpoints."""

from __future__ import annotations

import pytest

from tests.distributed.ranks import Failed, Ranks
from tests.tools import megatron_runs
from tests.tools.checks import check
from tests.tools.table import OPTIONS

TOOLS = {
    "Megatron-Core, FP32Optimizer": "FP32Optimizer",
    "Megatron-Core, Float16Optimizer": "Float16OptimizerWithFloat16Params",
}
ROUNDING = {"FP32Optimizer": 2e-6, "Float16OptimizerWithFloat16Params": 5e-4}
"""One master weight may round to another bfloat16."""


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("tool", TOOLS)
def test_trains_and_resumes(tool: str, option: str, ranks: Ranks) -> None:
    kind, clip = TOOLS[tool], option != "step_in_backward"
    rounding = ROUNDING[kind]
    check(ranks, tool, option, "step after the backward pass", megatron_runs.train, kind, clip, rounding=rounding)


@pytest.mark.parametrize("kind", TOOLS.values())
def test_it_clips(kind: str, ranks: Ranks) -> None:
    """The control of the runs above."""
    clipped, not_clipped = (ranks.run(2, megatron_runs.train, kind, clip, "plain", False)[0] for clip in (True, False))
    assert clipped.losses != not_clipped.losses


@pytest.mark.parametrize("theirs", [False, True], ids=["ours", "torch.optim.RAdam"])
def test_its_distributed_optimizer_takes_adam_alone(theirs: bool, ranks: Ranks) -> None:
    """Why the row has nothing to try."""
    for outcome in ranks.outcomes(2, megatron_runs.train, "DistributedOptimizer", True, "plain", theirs):
        assert isinstance(outcome, Failed)
        assert "Only Adam and HybridDeviceOptimizer" in outcome.message
