"""DistributedDataParallel, FSDP2, with torchao's float8 too, and FSDP1, both ways, by hand."""

from __future__ import annotations

import pytest

from tests.distributed.ranks import Failed, Ranks
from tests.tools import torch_runs
from tests.tools.checks import check
from tests.tools.table import OPTIONS, cell

TOOLS = {
    "DistributedDataParallel": "ddp",
    "FSDP2": "fsdp2",
    "FSDP2, torchao's float8": "float8",
    "FSDP2, torchao's float8, gathered so": "float8 gathered",
    "FSDP1, flat parameters": "fsdp1",
    "FSDP1, original parameters": "fsdp1 original",
}
SENTENCES = {
    "DistributedDataParallel": {"step_in_backward": "in a DistributedDataParallel module"},
    "FSDP2": {"flatten": "memory is FSDP2's"},
    "FSDP2, torchao's float8": {"flatten": "memory is FSDP2's"},
    "FSDP2, torchao's float8, gathered so": dict.fromkeys(OPTIONS, "WeightWithDynamicFloat8CastTensor"),
    "FSDP1, flat parameters": {
        "flatten": "or use flatten=False",
        "max_grad_norm": "model.clip_grad_norm_",
        "step_in_backward": "use_orig_params=True",
    },
    "FSDP1, original parameters": {"flatten": "or use flatten=False", "max_grad_norm": "model.clip_grad_norm_"},
}
TRIED = [(tool, option) for tool in TOOLS for option in OPTIONS if cell(tool, option) != "none"]


@pytest.mark.parametrize(("tool", "option"), TRIED)
def test_trains_and_resumes(tool: str, option: str, ranks: Ranks) -> None:
    sentence = SENTENCES[tool].get(option, "")
    clip = option != "step_in_backward"  # a user's own call comes after the backward pass, with nothing to clip
    check(ranks, tool, option, sentence, torch_runs.sharded, TOOLS[tool], clip)


def test_fsdp1_gathers_no_codes_of_original_parameters(ranks: Ranks) -> None:
    """Why a cell has nothing to try: state_dict of torch raises, for any state that some ranks have as codes."""
    for outcome in ranks.outcomes(2, torch_runs.sharded, "fsdp1 original", True, "int8", False):
        assert isinstance(outcome, Failed)
        assert "_shard_numel_padded" in outcome.message
