"""How many steps each parameter of a bucket has taken: an exact count, and the float32 that ``optimizer.state`` shows.

A float32 cannot count beyond 2^24: from there on the bias corrections would stay the same, and stochastic rounding
would use the same random bits in every step. So a float64 holds the exact count. Every step compares the two. Where
they differ, user code (or a collective, or another process) has written the float32, and its value counts from then on.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..cpp_helpers import HAS_LOOPS, counts_shown
from ..device import upload
from ..modes import real
from ..tensor_kinds import is_fake
from .views import own_view


def readable(device: torch.device) -> bool:
    """Whether the host can read what is on a device without waiting for it."""
    return device.type == "cpu"


class StepCounts:
    """The step counts of a bucket's segments.

    Args:
        length: how many segments there are.

    Attributes:
        shown: float32 (length): what ``state[p]["step"]`` are views of. On the CPU as in torch.optim, or with the
            moments once `move_to` was called.
        taken: float64 (length), beside it: the exact counts.
        addresses: of ``shown``, of ``taken``, and their length, for the loops in C.
        on_host: whether the host can read the counts without waiting for a device.
        on_device: whether a scalars operator counts, since only the device may know whether a step is taken.
    """

    def __init__(self, length: int) -> None:
        self.shown = torch.zeros(length, dtype=torch.float32, device="cpu")
        with real():
            self.taken = torch.zeros(length, dtype=torch.float64, device="cpu")
        self._fake = is_fake(self.shown)  # it has no values then, and those of `taken` count
        self.addresses = 0 if self._fake else self.shown.data_ptr(), self.taken.data_ptr(), length
        self.on_device, self.on_host = False, True
        self._classes: list[int] = []
        self._left_out: list[set[int]] = []  # by steps of CUDA graphs, whose replays the host does not see
        self._version = -1

    def view(self, index: int) -> Tensor:
        """What ``state[p]["step"]`` is: 0-d float32.

        On a GPU the views share a version counter, which shows the host that one of them was written.
        """
        return own_view(self.shown, (), (), index) if self.on_host else self.shown[index]

    def assign(self, index: int, count: float) -> None:
        """Sets the count of a segment."""
        with real():
            self.taken[index] = count
            if not self._fake:
                self.shown[index] = count

    def exact(self, index: int, shown: Any) -> float:
        """The count behind what an entry of ``optimizer.state`` shows of a segment.

        Args:
            index: the segment.
            shown: its entry's ``step``: a number, or a tensor with one.
        """
        with real():
            taken = float(self.taken[index])
        if is_fake(shown):
            return taken
        value = float(shown)
        return taken if float(torch.tensor(taken, dtype=torch.float32, device="cpu")) == value else value

    def begun(self, index: int) -> bool:
        """Whether a segment may have taken a step; True also where only a device knows."""
        with real():
            return not self.on_host or bool(self.taken[index])

    def written(self) -> bool:
        """Whether user code has written a count since the last step."""
        if self._fake:
            return False
        if not self.on_host:
            return self.shown._version != self._version
        if HAS_LOOPS:
            return not counts_shown(*self.addresses)
        return not torch.equal(self.shown, self.taken.float())

    def honour(self) -> None:
        """Takes over the counts that user code has written.

        Raises:
            ValueError: one that is no whole number, or below 0; nothing is taken over then.
        """
        differs = (self.shown != self.taken.float()).tolist()
        counts = self.taken.tolist()
        for index, value in enumerate(self.shown.tolist()):
            if differs[index]:
                if not (0 <= value < math.inf and value == int(value)):
                    raise ValueError(f"optimizer.state: a 'step' is {value!r}: must be a whole number, at least 0")
                counts[index] = value
        if self.on_host:
            self.taken.copy_(torch.tensor(counts, dtype=torch.float64, device="cpu"))
        else:
            self._classes = [int(count) for count in counts]  # a scalars operator takes the values over
            for absent in self._left_out:
                self.split(absent)
            self._version = self.shown._version

    def add(self, present: list[int] | None, known: bool = True) -> None:
        """Counts one step, for these segments or for all; on a device the scalars operator has done so.

        Args:
            present: the segments.
            known: whether the host knows the classes; otherwise a written count is left to be noticed.
        """
        if self.on_device:
            if known:
                self._version = self.shown._version
            return
        with real() if self._fake else nullcontext():
            self.taken[slice(None) if present is None else present] += 1.0
            if not self._fake:
                self.shown.copy_(self.taken)

    def take_back(self, counted: Tensor) -> None:
        """Undoes what a scalars operator has counted.

        Args:
            counted: float32 (length), with the counts: what it has added to each.
        """
        self.taken -= counted
        self.shown.copy_(self.taken)
        self._version = self.shown._version

    def move_to(self, device: torch.device, missing: set[int]) -> None:
        """From now on a scalars operator counts, on this device.

        Args:
            device: the state's.
            missing: segments that the step under way leaves out.
        """
        if self._fake:
            self.shown, self.on_device = self.shown.to(device), True
            return
        classes, on_host = self._classes, readable(device)
        if not on_host:
            classes = [int(count) for count in self.taken.tolist()]
        shown, taken = upload(self.shown, device), upload(self.taken, device)
        self.shown, self.taken, self.on_device, self._classes = shown, taken, True, classes
        self.addresses = shown.data_ptr(), taken.data_ptr(), len(shown)
        self.on_host = on_host
        self._version = self.shown._version
        if not self.on_host:
            self.split(missing)

    def classes(self, absent: set[int]) -> list[int]:
        """A number for each segment, the same for two where both have taken the same number of steps.

        It is that number where the host can read it. Where only a device can, segments start with the count that the
        host last knew, and their classes are split when a step takes one of them and not the other: to read the counts
        would be to wait for the device.
        """
        if not self.on_host:
            return self.split(absent)
        with real():
            return [int(count) for count in self.taken.tolist()]

    def expect_replays(self, absent: set[int]) -> bool:
        """Splits the classes as replays of a CUDA graph will whose step leaves these segments out.

        Returns:
            Whether the host knows the classes; False where user code has written a count, which a capture cannot read.
        """
        known = self.on_host or not self.written()
        if absent:
            self._left_out.append(absent)
            if known and not self.on_host:
                self.split(absent)
        return known

    def split(self, absent: set[int]) -> list[int]:
        """The classes after a step that leaves these segments out."""
        numbers: dict[tuple[int, bool], int] = {}
        self._classes = [numbers.setdefault((n, i in absent), len(numbers)) for i, n in enumerate(self._classes)]
        return self._classes
