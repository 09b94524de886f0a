"""Modes of torch's that may be active around an optimizer, and what is made under them nevertheless."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .dtensor import local
from .tensor_kinds import is_fake

Method = TypeVar("Method", bound=Callable[..., Any])


def in_own_modes(method: Method) -> Method:
    """A method of an optimizer that makes tensors as its parameters are, whatever mode it is called in.

    No inference tensors: what is made outlives the call, and such a tensor has no version counter, and cannot be
    written outside of the mode. Fake tensors where the parameters are, also outside of their mode.
    """

    @functools.wraps(method)
    def either(self: Any, *args: Any, **kwargs: Any) -> Any:
        inference = torch.is_inference_mode_enabled()
        if not inference and self._fake_mode is None:
            return method(self, *args, **kwargs)
        with ExitStack() as modes:
            if inference:
                modes.enter_context(torch.inference_mode(False))
                modes.enter_context(torch.set_grad_enabled(False))  # which leaving the mode would turn on
            if self._fake_mode is not None:
                modes.enter_context(self._fake_mode)
            return method(self, *args, **kwargs)

    return either  # type: ignore[return-value]


def real() -> AbstractContextManager[Any]:
    """The context for tensors that the host reads, or C by their addresses: real ones, whatever modes are active."""
    return _disable_current_modes() if torch._C._len_torch_dispatch_stack() else nullcontext()


def fake_mode_of(params: Iterable[Tensor]) -> Any:
    """The FakeTensorMode of the first fake tensor, or None where all are real."""
    return next((local(p).fake_mode for p in params if is_fake(local(p))), None)  # type: ignore[attr-defined]


def writing(tensors: Iterable[Tensor]) -> AbstractContextManager[Any]:
    """The context to write tensors in: inference mode, where one of them was made in it."""
    return torch.inference_mode() if any(tensor.is_inference() for tensor in tensors) else nullcontext()
