"""Inference mode and FakeTensorMode: which of them the optimizer's own code enters or leaves.

A caller may step an optimizer under ``torch.inference_mode()`` or under a FakeTensorMode. The helpers here choose the
mode under which the optimizer makes its state, makes the tables that the host reads, and writes into a user's tensors.
"""

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
    """Decorates a method of an optimizer so that the tensors it makes do not depend on the caller's modes.

    - They are never inference tensors. Those have no version counter and cannot be written outside inference mode,
      while the optimizer's tensors outlive the call.
    - They are fake tensors exactly where the optimizer's parameters are, also when the caller has left the
      FakeTensorMode.
    """

    @functools.wraps(method)
    def either(self: Any, *args: Any, **kwargs: Any) -> Any:
        inference = torch.is_inference_mode_enabled()
        if not inference and self._fake_mode is None:
            return method(self, *args, **kwargs)
        with ExitStack() as modes:
            if inference:
                modes.enter_context(torch.inference_mode(False))
                modes.enter_context(torch.set_grad_enabled(False))  # leaving inference mode turns gradients on
            if self._fake_mode is not None:
                modes.enter_context(self._fake_mode)
            return method(self, *args, **kwargs)

    return either  # type: ignore[return-value]


def real() -> AbstractContextManager[Any]:
    """A context that makes real tensors, whatever modes are active.

    For tables that Python reads on the host or that C++ reads through a pointer: a fake tensor has no elements.
    """
    return _disable_current_modes() if torch._C._len_torch_dispatch_stack() else nullcontext()


def fake_mode_of(params: Iterable[Tensor]) -> Any:
    """The FakeTensorMode of the first fake parameter; None if all are real."""
    return next((local(p).fake_mode for p in params if is_fake(local(p))), None)  # type: ignore[attr-defined]


def writing(tensors: Iterable[Tensor]) -> AbstractContextManager[Any]:
    """A context in which torch allows writing all of these tensors.

    It is inference mode if one of them is an inference tensor, which torch lets no in-place operator write elsewhere.
    """
    return torch.inference_mode() if any(tensor.is_inference() for tensor in tensors) else nullcontext()
