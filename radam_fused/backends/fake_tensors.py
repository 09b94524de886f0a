"""FakeTensorMode: state, buffers and the operators' arguments are fake tensors, what the host reads itself is not.

Memory is estimated so, with tensors that have no elements. The tables that the host reads, or C by their addresses,
stay real (`radam_fused.modes.real`); an operator is called with fake ones in their place, so that a mode which looks at
operators sees each call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from ..tensor_kinds import is_fake
from .ops import Operators


def called_with_fakes(operator: Callable[..., Any], on_one_device: bool = False) -> Callable[..., Any]:
    """An operator that takes real tensors among fake ones, as fake ones of the same mode.

    Args:
        operator: any.
        on_one_device: they become tensors of the fake ones' device.
    """

    def call(*args: Any) -> Any:
        first = next((leaf for leaf in tree_leaves(args) if is_fake(leaf)), None)
        if first is None:  # of some parameters only the large ones are fake, say
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
    )
