"""What the tests share: backends, dtypes, odd layouts, and comparison by bits."""

from __future__ import annotations

import ctypes
import os

import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:  # before anything imports Triton: its kernels are then interpreted on the CPU
    os.environ["TRITON_INTERPRET"] = "1"

import pytest  # noqa: E402

from tests.support.cuda_host import compile_host_kernels  # noqa: E402
from tests.support.helpers import BACKENDS  # noqa: E402
from tests.support.sampling import mark_long  # noqa: E402

pytest_plugins = ["tests.support.offloaded"]
"""Modules whose fixtures every test may use."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before ``-m "not long"`` leaves them out, marks the cases that `make test` does without."""
    mark_long(items)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Readable ids for what pytest would number: a dtype by its short name, options by their values."""
    if isinstance(val, torch.dtype):
        name = str(val).removeprefix("torch.")
        return name.replace("bfloat", "bf").replace("float", "fp") if "float8" not in name else name
    if isinstance(val, dict) and all(isinstance(key, str) for key in val):
        named = {k: k if v is True or isinstance(v, torch.Tensor) else f"{k}={v}" for k, v in val.items()}
        ids = [text.replace("=torch.", "=") for text in named.values()]
        return "-".join(ids) if ids else "default"
    return None


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend that this machine can run, CPU tensors for ``cpu``."""
    return request.param


@pytest.fixture
def device(backend: str) -> torch.device:
    """Where the tensors of a backend are."""
    return torch.device("cuda" if backend == "triton" and torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def host_kernels() -> ctypes.CDLL:
    """The CUDA kernels' bodies, compiled for the host."""
    return compile_host_kernels()


@pytest.fixture(autouse=True)
def _quiet_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests choose their backend themselves, and leave torch's thread count as it was."""
    monkeypatch.delenv("RADAM_FUSED_BACKEND", raising=False)
