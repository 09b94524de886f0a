"""timm: its factory by registration, layer decay, adaptive clipping of gradients, an average of the weights."""

from __future__ import annotations

import pytest

from tests.distributed.ranks import Ranks
from tests.tools import timm_runs
from tests.tools.checks import check
from tests.tools.table import OPTIONS

CLIP = {"max_grad_norm": "norm", "step_in_backward": ""}


@pytest.mark.parametrize("option", OPTIONS)
def test_trains_and_resumes(option: str, ranks: Ranks) -> None:
    check(ranks, "timm", option, "", timm_runs.train, CLIP.get(option, "agc"))


def test_clipping_is_its_own(ranks: Ranks) -> None:
    """The control of the runs above."""
    runs = [ranks.run(2, timm_runs.train, clip, "plain", False)[0].losses for clip in ("agc", "norm", "")]
    assert runs[0] != runs[1]
    assert runs[1] != runs[2]
    assert runs[0] != runs[2]
