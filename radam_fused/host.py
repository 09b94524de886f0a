"""Loops over parameters that every step makes, in C where the extension is there, and what goes to a device."""

from __future__ import annotations

from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

try:
    from ._C import (
        count_steps,
        describe,
        describe_tensors,
        gradients,
        in_place,
        prepare_describe,
        step_described,
        unchanged,
        write_rows,
    )

    with _disable_current_modes():  # a FakeTensorMode around this import would make tensors without memory
        _SAMPLES = [torch.empty(n, dtype=torch.float32, device="cpu") for n in (3, 5)]
        _SAMPLES[1] = torch.nn.Parameter(_SAMPLES[1])
        DESCRIBES = prepare_describe(
            Tensor,
            torch.nn.Parameter,
            [(t, t._cdata, t.data_ptr(), t.numel()) for t in _SAMPLES],
            object.__basicsize__,
            torch._C.TensorBase.__basicsize__,
        )
    """Whether a step by addresses works with this torch (addresses.py)."""
except ImportError:
    DESCRIBES = False

    def _missing(*_: Any) -> Any:
        raise NotImplementedError("radam_fused._C is not there; ask DESCRIBES first")

    count_steps = describe = describe_tensors = in_place = step_described = _missing  # type: ignore[assignment]

    def _identical(a: list[Any], b: list[Any]) -> bool:
        return len(a) == len(b) and all(map(is_, a, b))

    def unchanged(
        groups: list[dict[str, Any]], members: list[list[Tensor]], state: dict[Tensor, Any], entries: list[Any]
    ) -> bool:
        """Whether groups have these very parameters, and the state's values are these very entries, in order."""
        return _identical(list(state.values()), entries) and (
            len(groups) == len(members)
            and all(_identical(group["params"], ours) for group, ours in zip(groups, members, strict=True))
        )

    def write_rows(address: int, groups: list[dict[str, Any]], rows: list[tuple[int, int]]) -> bool:
        """False: `radam_fused.rows.step_row` makes them."""
        return False

    def gradients(params: list[Tensor]) -> tuple[list[Tensor], list[int]]:
        """The gradients of parameters, and the indices of those that have none."""
        grads = [p.grad for p in params]
        return [g for g in grads if g is not None], [i for i, g in enumerate(grads) if g is None]


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device, through pinned memory so that nothing waits; itself where it is there."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)  # the allocator keeps pinned memory until the copy is done


__all__ = [
    "DESCRIBES",
    "count_steps",
    "describe",
    "describe_tensors",
    "gradients",
    "in_place",
    "step_described",
    "unchanged",
    "upload",
    "write_rows",
]
