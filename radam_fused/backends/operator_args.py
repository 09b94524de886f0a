"""The arguments of the operators step and scalars, in the order of their schemas: `radam_fused.backends.ops`.

Must match ``StepArgs`` in csrc/args/step_args.h and ``ScalarsArgs`` in csrc/args/scalars_args.h.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..numerics.state_format import HALF, StateBuffers


class StepArgs(NamedTuple):
    """The arguments of **step**."""

    params: list[Tensor]
    grads: list[Tensor]
    exp_avg: Tensor
    exp_avg_sq: Tensor
    segments: Tensor
    scalar_index: Tensor
    scalars: Tensor
    zero_grads: bool = False
    scales: Tensor | None = None
    master: Tensor | None = None
    stochastic: bool = False
    rng_offsets: Tensor | None = None

    @property
    def state(self) -> StateBuffers:
        """The state buffers that the step updates."""
        return StateBuffers(self.exp_avg, self.exp_avg_sq, self.scales, self.master)

    @property
    def rounds_stochastically(self) -> bool:
        """Whether the parameters themselves are rounded stochastically."""
        return self.stochastic and len(self.params) > 0 and self.params[0].dtype in HALF

    def starts(self) -> list[int]:
        """The index of each segment's first element in the flat buffers."""
        found: list[int] = self.segments[:, 0].tolist()
        return found

    def offsets(self) -> list[int]:
        """The index of each segment's first random number: ``rng_offsets``, or its start."""
        found: list[int] = (self.segments[:, 0] if self.rng_offsets is None else self.rng_offsets).tolist()
        return found


class ScalarsArgs(NamedTuple):
    """The arguments of **scalars**."""

    group_scalars: Tensor
    sources: Tensor
    counted: Tensor
    steps: Tensor
    taken: Tensor
    lr: Tensor | None
    partial_sums: Tensor | None
    max_grad_norm: float
    grad_scale: Tensor | None
    found_inf: Tensor | None
