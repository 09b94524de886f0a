"""Kernels interpreted by a Triton that is older than NumPy: their loops have bounds all the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from triton.runtime import interpreter

from radam_fused import FusedRAdam
from radam_fused.backends.triton import availability, compat
from tests.support.helpers import same_bits


def stepped(backend: str) -> torch.Tensor:
    """A clipped step, which runs the kernels of grad_norm, scalars and step."""
    p = torch.nn.Parameter(torch.linspace(-1.0, 1.0, 100))
    p.grad = torch.ones(100)
    FusedRAdam([p], lr=0.1, backend=backend, max_grad_norm=0.5).step()
    return p.detach()


@pytest.fixture
def _refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.6 and NumPy 2.4: only an array without dimensions converts to a number."""

    def index(self: Any) -> int:
        if self.handle.data.ndim:
            raise TypeError("only 0-dimensional arrays can be converted to Python scalars")
        return int(self.handle.data)

    patch = interpreter._patch_lang_tensor

    def as_before(tensor: Any, *scope: Any) -> None:
        patch(tensor, *scope)
        tensor.__index__ = index

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", as_before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled here")
@pytest.mark.usefixtures("_refuses")
def test_bounds_of_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "mend", lambda: None)
    with pytest.raises(Exception, match="only 0-dimensional"):  # the negative control
        stepped("triton")
    monkeypatch.setattr(availability, "mend", compat.mend.__wrapped__)
    assert same_bits(stepped("triton"), stepped("reference"))
