"""Which GPUs the CUDA library serves, by the code that it was built with; the others are left to Triton."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from radam_fused import available_backends
from radam_fused.backends import backend_for, registry
from radam_fused.backends import native as cuda

B200, H100, L40, A100, ORIN, V100, RTX5090 = (10, 0), (9, 0), (8, 9), (8, 0), (8, 7), (7, 0), (12, 0)


@pytest.mark.parametrize(
    ("code", "runs", "does_not"),
    [
        ("sm_90", [H100], [B200, RTX5090, L40, A100]),
        ("sm_80", [A100, L40, ORIN], [H100, B200, V100]),
        ("sm_86", [L40, ORIN], [A100, H100]),
        ("sm_100", [B200, (10, 3)], [RTX5090, H100, (11, 0)]),
        ("sm_90a", [H100], [B200]),
        ("sm_100f", [B200, (10, 3)], [RTX5090]),
        ("compute_90", [H100, B200, RTX5090], [L40]),
        ("compute_90a", [H100], [B200]),
        ("compute_100f", [B200, (10, 3)], [RTX5090]),
    ],
)
def test_code_and_the_gpus_that_run_it(code: str, runs: list, does_not: list) -> None:
    assert all(cuda.runs_on(capability, code) for capability in runs)
    assert not any(cuda.runs_on(capability, code) for capability in does_not)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """GPUs of these capabilities, and a CUDA library with this code."""

    def has(*capabilities: tuple[int, int], code: str) -> None:
        library = SimpleNamespace(cuda_version=lambda: 13000, architectures=lambda: "900", code=lambda: code)
        monkeypatch.setattr(cuda, "_library", library)
        monkeypatch.setattr(cuda, "_runs", False)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        for name, value in {
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "device_count": lambda: len(capabilities),
            "get_device_capability": lambda device: capabilities[device],
            "get_device_name": lambda device: f"GPU {device}",
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    yield has
    monkeypatch.undo()


@pytest.mark.parametrize("code", ["sm_90", "sm_80,sm_90", "sm_80, sm_90a, compute_90a", "sm_120,compute_120"])
def test_a_gpu_without_code_is_reported_and_left_to_triton(machine, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A B200 beside a library for Hopper: a launch would find no kernel image."""
    machine(B200, code=code)
    monkeypatch.setitem(registry._UNAVAILABLE, "triton", lambda: None)
    reason = available_backends()["cuda"]
    for part in ("GPU 0 (compute capability 10.0)", "sm_", "TORCH_CUDA_ARCH_LIST=10.0", "+PTX"):
        assert part in reason
    assert cuda.cuda_unavailable() == reason  # asked again
    assert backend_for("cuda", "auto") == "triton"


@pytest.mark.parametrize("code", ["sm_100", "sm_90,compute_90", "sm_80,sm_90,sm_100,sm_120,compute_120"])
def test_a_gpu_with_code_takes_the_cuda_backend(machine, code: str) -> None:
    """The negative control."""
    machine(B200, code=code)
    assert available_backends()["cuda"] is None
    assert backend_for("cuda", "auto") == "cuda"


def test_every_gpu_is_asked(machine) -> None:
    machine(H100, B200, code="sm_90")
    assert "GPU 1 (compute capability 10.0)" in available_backends()["cuda"]
