"""What the first step of a plan shows in ``optimizer.state``: before the step, and taken back where that fails."""

from __future__ import annotations

from ..state.bucket import Bucket
from ..state.bucket_manager import BucketManager
from ..state.transaction import Transaction
from .launch import Launch


class FirstSteps:
    """The state that is shown for launches that are their plan's first, before any is run: to show it allocates.

    Args:
        manager: the buckets.
    """

    def __init__(self, manager: BucketManager) -> None:
        self._manager = manager
        self._shown: list[tuple[Bucket, Transaction]] = []

    def show(self, launch: Launch) -> None:
        """Shows the state of a launch's parameters, where it is not shown yet."""
        transaction = Transaction()
        self._shown.append((launch.bucket, transaction))
        self._manager.publish_new(launch.bucket, launch.plan.present, transaction)

    def take_back(self) -> None:
        """Takes back what was shown for steps that were not taken."""
        for bucket, transaction in reversed(self._shown):
            if bucket.unconfirmed is transaction:
                transaction.undo()
                bucket.unconfirmed = None
