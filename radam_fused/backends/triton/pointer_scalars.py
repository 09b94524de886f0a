"""The ``triton`` backend's scalars of a clipped step without torch's dispatcher: what a plan keeps is checked once."""

from __future__ import annotations

import torch
from torch import Tensor

from ...numerics.scalars import StepScalars
from ..operator_args import ScalarsArgs
from ..operator_checks import check_scalars
from .availability import require
from .launch import ALIGNED, Arguments, Launcher, on_device_of
from .scalars import kernel_arguments, kernel_for


class PointerScalars:
    """The scalars of one plan's steps, where the norm is all that only the device knows.

    Args:
        args: of the first step.

    Raises:
        RuntimeError, ValueError: an argument that does not fit.
    """

    def __init__(self, args: ScalarsArgs) -> None:
        require("scalars", args.group_scalars.device)
        check_scalars(args)
        self._kept = args.group_scalars, args.sources, args.counted, args.steps, args.taken
        self._found_at = list(map(Tensor.data_ptr, self._kept))
        self._aligned = all(address % ALIGNED == 0 for address in self._found_at)
        self._count = args.sources.shape[0]
        self._segments = args.steps.numel()
        self._device = args.group_scalars.device
        self._launcher: Launcher | None = None

    @staticmethod
    def suits(args: ScalarsArgs) -> bool:
        """Whether a step has a norm, and no other number that only the device knows."""
        return args.partial_sums is not None and args.lr is args.grad_scale is args.found_inf is None

    def _keeps(self, args: ScalarsArgs) -> bool:
        """Whether these are the tensors that were checked."""
        group_scalars, sources, counted, steps, taken = self._kept
        return (
            args.group_scalars is group_scalars
            and args.sources is sources
            and args.counted is counted
            and args.steps is steps
            and args.taken is taken
        )

    def compute(self, args: ScalarsArgs) -> tuple[Tensor, Tensor] | None:
        """``radam_fused::scalars_triton``; None, with nothing done, where one of the kept tensors is another."""
        sums = args.partial_sums
        assert sums is not None
        sums_at = sums.data_ptr()
        if not (self._keeps(args) and self._aligned and sums_at % ALIGNED == 0):
            return None
        if list(map(Tensor.data_ptr, self._kept)) != self._found_at:
            return None
        made = torch.empty(self._count, len(StepScalars._fields), dtype=torch.float64, device=self._device)
        norm = torch.empty((), dtype=torch.float64, device=self._device)
        if self._launcher is None:
            self._launcher = Launcher(*kernel_for())

        def tensors() -> Arguments:
            return kernel_arguments(args, made, norm)

        numbers = self._count, self._segments, sums.shape[0]
        at = (*self._found_at, None, 0, sums_at, args.max_grad_norm, None, None)
        with on_device_of(sums):
            self._launcher.start(1, (*at, made.data_ptr(), norm.data_ptr(), *numbers), tensors)
        return made, norm
