"""What an optimizer reports of itself."""

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


SPANS = {"radam_fused.collect", "radam_fused.scalars", "radam_fused.step"}


def clipped() -> FusedRAdam:
    p = torch.zeros(3)
    p.grad = torch.ones(3)
    return FusedRAdam([p], max_grad_norm=1.0)


def test_spans_in_a_profile() -> None:
    opt = clipped()
    with torch.profiler.profile() as profile:
        opt.step()
    assert {event.key for event in profile.key_averages()} >= SPANS


@pytest.mark.skipif(not torch.profiler.itt.is_available(), reason="this torch marks no ranges but NVTX's")
def test_spans_only_where_ranges_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By ITT, which torch marks in the way of NVTX but without a GPU."""
    seen: list[str] = []
    record = torch.autograd.profiler.record_function

    def recorded(name: str) -> torch.autograd.profiler.record_function:
        seen.append(name)
        return record(name)

    monkeypatch.setattr(torch.autograd.profiler, "record_function", recorded)
    opt = clipped()
    opt.step()
    assert not SPANS & set(seen)
    with torch.autograd.profiler.emit_itt():
        opt.step()
    assert set(seen) >= SPANS
    seen.clear()
    opt.step()
    assert not SPANS & set(seen)
