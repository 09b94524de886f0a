"""What the ranks train in a tool: a model of 16,576 parameters, and what the runs of an option have to show."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam
from radam_fused.state.bucket import Bucket
from tests.distributed.ranks import Failed, Ranks
from tests.tools.table import OPTIONS, cell

STEPS, SAVED_AT = 10, 4
"""RAdam rectifies from the sixth step on, so after the checkpoint."""
LIMIT = OPTIONS["max_grad_norm"]["max_grad_norm"]
"""Of the gradients' norm, which is above it in every step."""
HYPER: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1, "decoupled_weight_decay": True}


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """The same each time; its weights are large enough for 8-bit moments, on two ranks too."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64)).to(dtype)


def batch(step: int, rank: int) -> Tensor:
    """A rank's inputs of a step, which are its targets too."""
    return torch.randn(4, 64, generator=torch.Generator().manual_seed(100 * step + rank))


def optimizer_class(theirs: bool) -> type:
    """torch.optim.RAdam for their run."""
    return torch.optim.RAdam if theirs else FusedRAdam


@dataclass
class Run:
    """What a rank has seen of a run."""

    losses: list[float] = field(default_factory=list)
    resumed: list[float] = field(default_factory=list)
    """The losses after the checkpoint, in a second run that begins with it."""
    layouts: list[int] = field(default_factory=list)
    """How many buckets each step has made."""


class Layouts:
    """Counts the buckets that are made while it is entered."""

    def __enter__(self) -> Layouts:
        self.made, self._init = 0, Bucket.__init__

        def counted(bucket: Bucket, *args: Any, **kwargs: Any) -> None:
            self.made += 1
            self._init(bucket, *args, **kwargs)

        Bucket.__init__ = counted  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        Bucket.__init__ = self._init  # type: ignore[method-assign]


_seen: dict[Any, list[Run]] = {}
"""The runs that several options are compared with, by what was run."""


def _run(ranks: Ranks, train: Any, args: tuple[Any, ...], option: str, theirs: bool) -> list[Run]:
    key = (train, args, "plain" if theirs else option, theirs)
    if key not in _seen:
        _seen[key] = ranks.run(2, train, *args, option, theirs)
    return _seen[key]


def check(ranks: Ranks, tool: str, option: str, sentence: str, train: Any, *args: Any, rounding: float = 2e-6) -> None:
    """Runs an option in a tool on both ranks, and checks that it does what the table says.

    Args:
        ranks: the processes.
        tool: the table's row.
        option: its column.
        sentence: a part of what an error says.
        train: takes args, an option and whether torch.optim.RAdam is to train, and returns a `Run`.
        args: handed on.
        rounding: by how much the losses may differ from torch.optim.RAdam's, relatively.
    """
    word = cell(tool, option)
    if word == "error":
        for outcome in ranks.outcomes(2, train, *args, option, False):
            assert isinstance(outcome, Failed), outcome
            assert outcome.name in ("ValueError", "RuntimeError", "NotImplementedError"), outcome
            assert sentence in outcome.message, outcome
        return
    assert word in ("works", "no effect")
    runs = _run(ranks, train, args, option, False)
    for ours, theirs in zip(runs, _run(ranks, train, args, option, True), strict=True):
        assert ours.losses == pytest.approx(theirs.losses, rel=max(rounding, 2e-3 if option == "int8" else 0))
        assert len(ours.losses) == STEPS
        assert ours.resumed == ours.losses[SAVED_AT:]
        assert ours.layouts[1:] == [0] * (STEPS - 1)
    if word == "no effect":
        assert [run.losses for run in runs] == [run.losses for run in _run(ranks, train, args, "plain", False)]
