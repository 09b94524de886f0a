"""Modes of torch's that may be active around an optimizer, and what is made under them nevertheless."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

Method = TypeVar("Method", bound=Callable[..., Any])


def outside_inference_mode(method: Method) -> Method:
    """A method that makes no inference tensors, as what it makes outlives the mode it is called in.

    An inference tensor has no version counter, and cannot be written outside of the mode.
    """

    @functools.wraps(method)
    def either(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_inference_mode_enabled():
            return method(*args, **kwargs)
        with torch.inference_mode(False), torch.set_grad_enabled(False):  # which leaving the mode would turn on
            return method(*args, **kwargs)

    return either  # type: ignore[return-value]


def writing(tensors: Iterable[Tensor]) -> AbstractContextManager[Any]:
    """The context to write tensors in: inference mode, where one of them was made in it."""
    return torch.inference_mode() if any(tensor.is_inference() for tensor in tensors) else nullcontext()
