"""NVTX ranges around the parts of a step, when they are asked for."""

from __future__ import annotations

import pytest
import torch

from tests.gpu import on_gpu

SPANS = {"radam_fused.collect", "radam_fused.step.scalars", "radam_fused.numerics.scalars", "radam_fused.step"}


def test_nvtx_ranges_only_when_asked_for(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `emit_nvtx` torch pushes a range for each of these."""
    seen: list[str] = []
    record = torch.autograd.profiler.record_function

    def recorded(name: str) -> torch.autograd.profiler.record_function:
        seen.append(name)
        return record(name)

    monkeypatch.setattr(torch.autograd.profiler, "record_function", recorded)
    params, opt = on_gpu.model([(1000,), (33, 5)], backend, max_grad_norm=0.1)
    others, other = on_gpu.model([(1000,), (33, 5)], backend, max_grad_norm=0.1)
    opt.step()
    assert not SPANS & set(seen)
    with torch.autograd.profiler.emit_nvtx():
        opt.step()
    assert set(seen) >= SPANS
    for _ in range(2):
        other.step()
    assert on_gpu.same(params, others)
