"""What a step does after a call has failed: it names the tensor at fault, or repairs the layout so that it can retry.

No step that succeeds runs this code: to look for these conditions in every step would cost more than the step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..device import capturing
from ..dtensor import local_gradients
from ..numerics.layout import as_real
from ..numerics.tensor_checks import check_gradients, check_stored
from ..state.bucket import Bucket
from ..tensor_kinds import is_copy_on_write
from .launch import Launch, Names, resolved


def check_launch(launch: Launch, names_of: Names) -> None:
    """Raises for the first tensor of a launch that does not fit, by name.

    Raises:
        RuntimeError, TypeError, ValueError: see `numerics.tensor_checks`; also a parameter that has another shape,
            device or precision than when its state was made.
    """
    if launch.pointer_table is not None and launch.pointer_table.fits():
        return
    bucket = launch.bucket
    names = names_of()
    grouped = [(k, p) for k, p in enumerate(bucket.params) if bucket.groups[k] >= 0]
    for segment, p in grouped:
        tensor = as_real(p)
        shape, is_double = tensor.shape, tensor.dtype == torch.float64
        was = f"its state was made for {tuple(bucket.shapes[segment])}, {bucket.dtype} on {bucket.device}"
        if shape != bucket.shapes[segment] or tensor.device != bucket.device:
            raise ValueError(f"{names[p]} is now {tuple(shape)} on {tensor.device}: {was}")
        if bucket.master is not None and p.dtype != bucket.dtype:
            raise TypeError(f"{names[p]} is now {p.dtype}: its master weights were made for {bucket.dtype}")
        if is_double != (bucket.dtype == torch.float64) or p.is_complex() != bucket.is_complex:
            raise TypeError(f"{names[p]} is now {p.dtype}: {was}")
    pairs = [(p, p.grad) for _, p in grouped if p.grad is not None]
    for p, _ in pairs:
        first = pairs[0][0]
        if p.dtype != first.dtype:
            raise TypeError(
                f"{names[p]} is now {p.dtype} and {names[first]} {first.dtype}: their state is stored "
                "together; after a change of some dtypes, load_state_dict(state_dict()) lays it out again"
            )
    check_gradients([p for p, _ in pairs], [grad for _, grad in pairs], [names[p] for p, _ in pairs])
    for p, grad in pairs:
        for name, tensor in ((names[p], p), (f"gradient of {names[p]}", grad)):
            # Wrappers have no memory of their own, and a lazy zero is written out before it is read (`resolved`).
            if type(tensor) in (Tensor, torch.nn.Parameter) and not tensor._is_zerotensor():
                check_stored(**{name: tensor})
    if bucket.is_sharded:
        local_gradients([p for p, _ in pairs], [grad for _, grad in pairs], names_of)


def materialized(tensor: Tensor) -> bool:
    """Gives a copy-on-write tensor (`torch._lazy_clone`) memory of its own; whether it was one.

    torch does so at the first write, but not on several threads.
    """
    if not is_copy_on_write(tensor):
        return False
    tensor.data_ptr()
    return True


def repair_layout(bucket: Bucket) -> bool:
    """Repairs rare conditions after a failed call; returns True if there were any, so that the call may be tried again.

    Moments of parameters whose strides have changed are laid out again, lazy gradients are written out, and
    copy-on-write tensors get memory of their own.
    """
    if capturing(bucket.device):
        return False  # each replay would repeat the repair
    moved = bucket.follow_strides()
    written = False
    for p in bucket.params:
        written |= materialized(p)
        if (grad := p.grad) is not None:
            written |= materialized(grad) or resolved(p, grad) is not grad
    return bool(moved) or written
