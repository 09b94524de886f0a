"""What tests/gpu/test_gpu_distributed.py checks over NCCL, with gloo on the CPU: those checks run, and pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.ranks import Ranks
from tests.gpu.test_gpu_distributed import check_checkpoint, check_disagreement, check_training


@pytest.mark.parametrize("clip", [False, True], ids=["", "max_grad_norm"])
@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.long)])
def test_training(world: int, clip: bool, ranks: Ranks) -> None:
    ranks.run(world, check_training, "cpu", "cpu", clip)


def test_checkpoint(ranks: Ranks, tmp_path: Path) -> None:
    ranks.run(2, check_checkpoint, "cpu", "cpu", str(tmp_path))


@pytest.mark.parametrize("world", [1, 2])
def test_disagreement(world: int, ranks: Ranks) -> None:
    ranks.run(world, check_disagreement, "cpu", "cpu")
