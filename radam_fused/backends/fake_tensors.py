"""FakeTensorMode, in which users estimate memory with tensors that have no elements.

State, buffers and the operators' arguments are fake tensors. The tables that the host reads, or that C++ reads through
pointers, stay real (`radam_fused.modes.real`). An operator gets fake copies of them, so that a dispatch mode sees each
call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from ..tensor_kinds import is_fake
from .ops import Operators


def called_with_fakes(operator: Callable[..., Any], on_one_device: bool = False) -> Callable[..., Any]:
    """Wraps an operator: real tensors among its fake arguments are replaced by fake ones of the same mode.

    Args:
        operator: any operator.
        on_one_device: whether all arguments are moved to the device of the first fake one.
    """

    def call(*args: Any) -> Any:
        first = next((leaf for leaf in tree_leaves(args) if is_fake(leaf)), None)
        if first is None:  # all are real: only large parameters may be fake, for example
            return operator(*args)
        mode = first.fake_mode

        def converted(tensor: Tensor) -> Tensor:
            fake = tensor if is_fake(tensor) else mode.from_tensor(tensor)
            return fake.to(first.device) if on_one_device else fake

        with mode:
            return operator(*tree_map_only(Tensor, converted, args))

    return call


def faked(operators: Operators) -> Operators:
    """The operators of a bucket of fake tensors."""
    return Operators(
        called_with_fakes(operators.step),
        called_with_fakes(operators.grad_norm),
        called_with_fakes(operators.scalars, True),
        backend=operators.backend,
    )
