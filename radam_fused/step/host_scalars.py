"""The scalars of a step from Python numbers, and what every source of scalars does."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from ..backends.ops import Operators
from ..state.bucket import Bucket
from .plan import Plan

Groups = list[dict[str, Any]]


class Scalars(Protocol):
    """Computes the scalars of one step."""

    grad_norm: Tensor | None
    """The norm of the unscaled gradients, a float64 scalar, once `compute` was called; None where none is clipped."""

    def prepare(self, plans: list[tuple[Bucket, Plan, Operators]]) -> None:
        """Before the first of several launches: what is wrong with a later one is said while nothing is written."""

    def cancel(self) -> None:
        """Where a launch failed: what was prepared for those after it did not happen."""

    def prepared(self, plan: Plan) -> Tensor:
        """What `prepare` has computed for a plan."""

    def confirm(self) -> None:
        """All steps that were prepared have been taken."""

    def compute(self, bucket: Bucket, plan: Plan, ops: Operators) -> Tensor:
        """float64 (n, 11): a `radam_fused.numerics.scalars.StepScalars` for each of the plan's pairs.

        Raises:
            TypeError, ValueError: a hyperparameter that is not allowed.
        """

    def undo(self, bucket: Bucket, plan: Plan) -> None:
        """Where the step failed before it wrote anything: the counts become what they were before `compute`."""


class HostScalars:
    """Scalars computed from Python numbers."""

    grad_norm: Tensor | None = None

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._prepared: dict[int, Tensor] = {}

    def prepare(self, plans: list[tuple[Bucket, Plan, Operators]]) -> None:
        """See `Scalars`."""
        for bucket, plan, _ in plans:
            self._prepared[id(plan)] = plan.scalar_buffer.filled(self._groups, plan.pairs, bucket.counts.taken)

    def cancel(self) -> None:
        """See `Scalars`: nothing was counted."""
        self._prepared.clear()

    def prepared(self, plan: Plan) -> Tensor:
        """See `Scalars`."""
        return self._prepared[id(plan)]

    def confirm(self) -> None:
        """See `Scalars`."""
        self._prepared.clear()

    def compute(self, bucket: Bucket, plan: Plan, ops: Operators) -> Tensor:
        """See `Scalars`."""
        prepared = self._prepared.get(id(plan)) if self._prepared else None
        if prepared is not None:
            return prepared
        return plan.scalar_buffer.filled(self._groups, plan.pairs, bucket.counts.taken)

    def undo(self, bucket: Bucket, plan: Plan) -> None:
        """See `Scalars`: nothing was counted."""
