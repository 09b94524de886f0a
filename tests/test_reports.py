"""What an optimizer tells of itself."""

from __future__ import annotations

import pytest
import torch

from radam_fused import FusedRAdam
from radam_fused.rectification import rectification, rho


@pytest.mark.parametrize("capturable", [False, True], ids=["host", "device"])
def test_rectification_state(capturable: bool) -> None:
    p, late, exact = (torch.zeros(3) for _ in range(3))
    opt = FusedRAdam(
        [{"params": [p, late]}, {"params": [exact], "betas": (0.9, 0.99), "rectification": "exact"}],
        capturable=capturable,
    )
    assert opt.rectification_state() == []
    for t in range(1, 9):
        p.grad, exact.grad = torch.ones(3), torch.ones(3)
        late.grad = torch.ones(3) if t > 4 else None
        opt.step()
    assert opt.rectification_state() == [
        (0, 1, 8, rho(8, 0.999), rectification(8, 0.999)),
        (0, 1, 4, rho(4, 0.999), None),
        (1, 1, 8, rho(8, 0.99), rectification(8, 0.99, "exact")),
    ]


def test_spans_only_while_a_profile_is_taken() -> None:
    p = torch.zeros(3)
    p.grad = torch.ones(3)
    opt = FusedRAdam([p], max_grad_norm=1.0)
    opt.step()
    with torch.profiler.profile() as profile:
        opt.step()
    names = {event.key for event in profile.key_averages()}
    assert {"radam_fused.collect", "radam_fused.scalars", "radam_fused.rows", "radam_fused.step"} <= names
