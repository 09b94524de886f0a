"""What `torch.amp.GradScaler` asks of an optimizer that unscales by itself, as torch's fused ones do.

Its ``step(optimizer)`` reads ``optimizer._step_supports_amp_scaling``. If that is true it looks for infinities, sets
``optimizer.grad_scale`` and ``optimizer.found_inf``, and calls ``optimizer.step()``, without waiting for the device;
otherwise it unscales the gradients, waits for what it has found, and calls ``optimizer.step()`` where that is nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from ..cpp_helpers import gradients
from .launch import Launch

_dtype_of = attrgetter("dtype")

CALLERS = 16
"""How many frames between `torch.amp.GradScaler.step` and its question are looked at."""


def asked_of_another(optimizer: Any) -> bool:
    """Whether GradScaler asks for ``_step_supports_amp_scaling`` of an object that only hands the question on.

    A wrapper whose ``__getattr__`` finds what it lacks in the optimizer would answer for it, and then be given the
    scale: the optimizer would step by scaled gradients, infinities included. (With torch's fused optimizers it does.)
    So the answer is no there, and GradScaler unscales. Only a call by GradScaler looks at any frame.
    """
    scaler_step = torch.amp.GradScaler.step.__code__
    frame = sys._getframe(2)  # past the property
    for _ in range(CALLERS):
        if frame.f_code is scaler_step:
            return frame.f_locals["optimizer"] is not optimizer
        if frame.f_back is None:
            break
        frame = frame.f_back
    return False


class Unscaling:
    """Divides the gradients of a step by GradScaler's scale, with the bits of `torch.amp.GradScaler.unscale_`.

    The step itself has read them as they were, which loses nothing where they have 16 bits. Also after a step that was
    skipped, where infinities stay. What it needs is allocated when it is made, before the step.

    Args:
        launches: of the step; every gradient is divided once, also one that several parameters share.
        grad_scale: one float32.
    """

    def __init__(self, launches: Sequence[Launch], grad_scale: Tensor) -> None:
        self._launches = launches
        self._scales: dict[torch.device, tuple[Tensor, Tensor]] = {}
        for device in {launch.bucket.device: None for launch in launches}:
            # As unscale_ has it.
            inverse = grad_scale.double().reciprocal().float().to(device, non_blocking=device.type != "cpu")
            found = torch.zeros((), dtype=torch.float32, device=device)  # known already
            self._scales[device] = found, inverse

    def run(self) -> None:
        """Divides them, after the step."""
        seen: set[int] = set()
        for launch in self._launches:
            grads = gradients(launch.params)[0] if launch.grads is None else launch.grads
            params = launch.plan.params
            if len(grads) == len(params):  # under flatten, whose buffers no two parameters share, there are fewer
                owners = {id(p.grad): grad for p, grad in zip(params, grads, strict=True) if id(p.grad) not in seen}
                seen.update(owners)
                grads = list(owners.values())
            for dtype in dict.fromkeys(map(_dtype_of, grads)):
                alike = [grad for grad in grads if grad.dtype == dtype]
                torch._amp_foreach_non_finite_check_and_unscale_(alike, *self._scales[launch.bucket.device])
