"""``max_grad_norm`` where tools make an optimizer for some of the parameters alone."""

from __future__ import annotations

import copy
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer, _apply_optimizer_in_backward

from radam_fused import FusedRAdam
from radam_fused.step import parts
from tests.distributed.ranks import Ranks
from tests.distributed.training import batch, net
from tests.support.rank_errors import errors, meet


class OSS(torch.optim.Optimizer):
    """fairscale's, as far as it concerns the optimizer that it makes (fairscale/optim/oss.py)."""

    def __init__(self, params: Any, optim: type[torch.optim.Optimizer], group: Any = None, **default: Any) -> None:
        super().__init__(params, default)
        self.group = group if group is not None else dist.group.WORLD
        mine = copy.copy(self.param_groups[0])
        mine["params"] = mine["params"][dist.get_rank() :: dist.get_world_size()]
        self.optim = optim([mine], **default)


class Unknown(OSS):
    """One of which nothing is known."""


def shared_out(kind: str, tool: str, given: bool) -> tuple[float, list[Tensor]]:
    meet()
    module = types.ModuleType("fairscale.optim.oss")
    module.OSS = OSS if tool == "oss" else type("None", (), {})  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    try:
        params = [nn.Parameter(torch.ones(3, 4)) for _ in range(4)]
        optimizer = (Unknown if tool == "unknown" else OSS)(params, FusedRAdam, max_grad_norm=1.0)
    finally:
        del sys.modules[module.__name__]
    if kind == "loaded":
        optimizer.optim.load_state_dict(optimizer.optim.state_dict())
    if given:
        optimizer.optim.grad_norm_group = dist.group.WORLD
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.optim.step()
    return float(optimizer.optim.last_grad_norm), [p.detach() for p in params]


@pytest.mark.parametrize("kind", ["made", "loaded"])
def test_oss_of_fairscale_is_known(kind: str, ranks: Ranks) -> None:
    assert [norm for norm, _ in ranks.run(2, shared_out, kind, "oss", False)] == [48.0**0.5] * 2


def test_an_unknown_optimizer_that_shares_out_parameters_is_an_error(ranks: Ranks) -> None:
    for message in errors(ranks.outcomes(2, shared_out, "made", "unknown", False)):
        assert "hands on its arguments" in message
        assert "grad_norm_group" in message
    assert [norm for norm, _ in ranks.run(2, shared_out, "made", "unknown", True)] == [48.0**0.5] * 2
    assert [norm for norm, _ in ranks.run(1, shared_out, "made", "unknown", False)] == [48.0**0.5]


def zero_loaded() -> float:
    p = [nn.Parameter(torch.ones(3, 4)) for _ in range(2)]
    optimizer = ZeroRedundancyOptimizer(p, FusedRAdam, max_grad_norm=1.0)
    optimizer.optim.load_state_dict(optimizer.optim.state_dict())
    for q in p:
        q.grad = torch.ones_like(q)
    optimizer.step()
    return float(optimizer.optim.last_grad_norm)


def test_zero_redundancy_optimizer_after_loading(ranks: Ranks) -> None:
    assert ranks.run(2, zero_loaded) == [24.0**0.5] * 2


# One optimizer for each parameter.


def test_optimizers_in_backward_are_errors() -> None:
    """Their norms are those of single parameters, in one process too."""
    model = net()
    _apply_optimizer_in_backward(FusedRAdam, model.parameters(), {"max_grad_norm": 1.0})
    with pytest.raises(ValueError, match=r"has an optimizer of its own \(_apply_optimizer_in_backward\)"):
        model(batch(0)).sum().backward()
    model = net()
    _apply_optimizer_in_backward(FusedRAdam, model.parameters(), {"lr": 0.1})
    before = model.up.weight.detach().clone()
    model(batch(0)).sum().backward()
    assert not torch.equal(before, model.up.weight)


def no_frames(*_: Any) -> Any:
    raise AssertionError("frames were looked at")


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}], ids=["", "clip"])
def test_nothing_looks_at_frames(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """On the ordinary way; the negative control is where groups carry max_grad_norm."""
    monkeypatch.setattr(parts.sys, "_getframe", no_frames)
    p = nn.Parameter(torch.ones(3))
    make: Callable[..., FusedRAdam] = lambda **group: FusedRAdam([{"params": [p], **group}], **options)  # noqa: E731
    optimizer = make()
    p.grad = torch.ones(3)
    optimizer.step()
    if options:
        with pytest.raises(AssertionError, match="frames were looked at"):
            make(max_grad_norm=1.0)
