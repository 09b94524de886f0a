"""Whatever is missing here, `available_backends` and ``python -m radam_fused`` say what, and what to do."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from radam_fused import FusedRAdam, available_backends, installation
from radam_fused.backends import native, registry

Patch = pytest.MonkeyPatch


def _fails(monkeypatch: Patch, module: str, message: str) -> None:
    """Importing a module fails, with a message that may be empty."""
    real = importlib.import_module

    def fail(name: str, *arguments: Any) -> Any:
        if name == module:
            raise ImportError(message)
        return real(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", fail)


def _there(monkeypatch: Patch, module: str, there: bool) -> None:
    real = importlib.util.find_spec
    spec = importlib.util.spec_from_loader(module, None) if there else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: spec if name == module else real(name, *rest))


def no_extension(monkeypatch: Patch) -> None:
    _fails(monkeypatch, "radam_fused._C", "")
    monkeypatch.setattr(native, "_cpu_failure", None)
    native.load_cpu()


def _cuda_library(monkeypatch: Patch, major: int) -> None:
    library = SimpleNamespace(cuda_version=lambda: 1000 * major, code=lambda: "sm_90")
    monkeypatch.setattr(native, "_library", library)
    monkeypatch.setattr(native, "_runs", False)


def no_cuda_library(monkeypatch: Patch) -> None:
    monkeypatch.setattr(native, "_library", None)
    monkeypatch.setattr(native, "_runs", False)
    _there(monkeypatch, "radam_fused._C_cuda", False)
    native.load_cuda()


def cuda_library_that_does_not_load(monkeypatch: Patch) -> None:
    monkeypatch.setattr(native, "_library", None)
    monkeypatch.setattr(native, "_runs", False)
    _there(monkeypatch, "radam_fused._C_cuda", True)
    _fails(monkeypatch, "radam_fused._C_cuda", "")
    native.load_cuda()


def another_cuda(monkeypatch: Patch) -> None:
    _cuda_library(monkeypatch, 11)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def no_gpu(monkeypatch: Patch) -> None:
    _cuda_library(monkeypatch, 13)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def no_triton(monkeypatch: Patch) -> None:
    _there(monkeypatch, "triton", False)


MISSING: dict[Callable[[Patch], None], tuple[str, str]] = {
    no_extension: ("cpu", "where there is a C++ compiler"),
    no_cuda_library: ("cuda", "--no-build-isolation"),
    cuda_library_that_does_not_load: ("cuda", "--no-build-isolation"),
    another_cuda: ("cuda", "built with CUDA 11.0, but torch"),
    no_gpu: ("cuda", "torch sees no GPU"),
    no_triton: ("triton", "pip install"),
}


def empty(reasons: dict[str, str | None]) -> list[str]:
    """The backends whose reason says nothing, or leaves out what it announces."""
    return [name for name, said in reasons.items() if said is not None and (len(said) < 10 or ": ;" in said)]


@pytest.mark.parametrize("missing", MISSING, ids=lambda missing: missing.__name__)
def test_a_reason_says_what_is_missing_and_what_to_do(missing: Callable[[Patch], None], monkeypatch: Patch) -> None:
    monkeypatch.setattr(native, "_cuda_failure", native._cuda_failure)
    missing(monkeypatch)
    name, expected = MISSING[missing]
    reasons = available_backends()
    said = reasons[name]
    assert said is not None
    assert expected in said
    assert empty(reasons) == []
    assert f"  {name.ljust(9)}  cannot run: {said}" in installation.report()


@pytest.mark.parametrize("reason", ["", "no", "the extension is not there: ; reinstall it"])
def test_an_empty_reason_is_found(reason: str, monkeypatch: Patch) -> None:
    monkeypatch.setitem(registry._UNAVAILABLE, "cpu", lambda: reason)
    assert empty(available_backends()) == ["cpu"]


def test_the_slow_backend_is_warned_of_once_and_at_the_line_of_the_caller(monkeypatch: Patch) -> None:
    monkeypatch.setitem(registry._UNAVAILABLE, "cpu", lambda: "no compiler was there")
    monkeypatch.setattr(registry, "_warned", set())
    installation.report()  # which names it, and does not warn
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            params = [torch.nn.Parameter(torch.ones(size)) for size in (3, 5000)]
            params[1].data = params[1].data.double()
            optimizer = FusedRAdam(params)
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
    assert {(Path(warning.filename).name, str(warning.message)) for warning in caught} == {
        (
            "test_reasons.py",
            "FusedRAdam steps its cpu parameters with the slow 'reference' backend (cpu: no compiler was there)",
        )
    }
    assert len(caught) == 1
