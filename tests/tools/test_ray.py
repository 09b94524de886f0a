"""Ray Train with two workers, and checkpoints that it keeps."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tools import ray_runs
from tests.tools.checks import check
from tests.tools.table import OPTIONS


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return ray_runs.Workers(tmp_path_factory.mktemp("ray"))


@pytest.mark.parametrize("option", OPTIONS)
def test_trains_and_resumes(option: str, workers: Any) -> None:
    check(workers, "Ray Train", option, "in a DistributedDataParallel module", ray_runs.train, True)


def test_it_clips(workers: Any) -> None:
    """The control of the runs above."""
    clipped, not_clipped = (workers.run(2, ray_runs.train, clip, "plain", False)[0] for clip in (True, False))
    assert clipped.losses != not_clipped.losses
