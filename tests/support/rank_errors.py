"""What ranks raise, and where they meet before one of them fails."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from tests.distributed.ranks import Failed


def meet() -> None:
    """All ranks are there before one of them fails and leaves."""
    dist.barrier()


def errors(outcomes: list[Any]) -> list[str]:
    assert all(isinstance(outcome, Failed) and outcome.name == "ValueError" for outcome in outcomes), outcomes
    return [outcome.message for outcome in outcomes]
