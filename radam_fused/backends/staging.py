"""Copies between a device and staging memory on the host: "down" to the host, "up" to the device.

A GPU copies on two streams of its own; for CPU parameters the same calls copy at once. Each `Slot` of staging memory is
used over and over: copied down, waited for, stepped by the host, copied up. `Transfer.finish` makes the caller's stream
wait for all copies, so the tensors need no ``record_stream``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Copies = Sequence[tuple[Tensor, Tensor]]
"""Pairs of target and source, which have the same shape and dtype."""


class Slot:
    """One piece of staging memory.

    Attributes:
        memory: uint8, 1-d; pinned on a GPU's host, so that copies run while the host computes.
        down, up: the events after the last copies from and to the device; None on the CPU, which copies at once.
    """

    def __init__(self, memory: Tensor, events: bool) -> None:
        self.memory = memory
        self.down = torch.cuda.Event() if events else None
        self.up = torch.cuda.Event() if events else None


class Transfer:
    """Copies for parameters on the CPU: each call copies at once."""

    def slot(self, nbytes: int) -> Slot:
        """Allocates a slot of so many bytes."""
        return Slot(torch.empty(nbytes, dtype=torch.uint8, device="cpu"), events=False)

    def begin(self) -> None:
        """Makes all later copies wait for what the current stream has been given so far."""

    def down(self, slot: Slot, copies: Copies) -> None:
        """Copies from the device into a slot, after the slot's previous copies up."""
        for target, source in copies:
            target.copy_(source)

    def wait(self, slot: Slot) -> None:
        """Blocks the host until the slot's last copies down are done."""

    def up(self, slot: Slot, copies: Copies) -> None:
        """Copies from a slot to the device."""
        for target, source in copies:
            target.copy_(source)

    def finish(self) -> None:
        """Makes the current stream wait for all copies so far."""


class StreamTransfer(Transfer):
    """Copies for parameters on a GPU: one stream for each direction of the bus.

    torch copies a tensor that is not dense through a temporary on the device, on the same stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._down, self._up = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def slot(self, nbytes: int) -> Slot:
        """See `Transfer`; the memory is pinned."""
        return Slot(torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True), events=True)

    def begin(self) -> None:
        """See `Transfer`."""
        self._down.wait_stream(torch.cuda.current_stream(self._device))

    def down(self, slot: Slot, copies: Copies) -> None:
        """See `Transfer`."""
        assert slot.down is not None
        assert slot.up is not None
        with torch.cuda.stream(self._down):
            self._down.wait_event(slot.up)  # returns at once for an event that was never recorded
            for target, source in copies:
                target.copy_(source, non_blocking=True)
            slot.down.record(self._down)

    def wait(self, slot: Slot) -> None:
        """See `Transfer`."""
        assert slot.down is not None
        slot.down.synchronize()

    def up(self, slot: Slot, copies: Copies) -> None:
        """See `Transfer`.

        The caller has waited for the slot's copies down. These came after the current stream's work (`begin`), so the
        copies up need not wait for that stream.
        """
        assert slot.up is not None
        with torch.cuda.stream(self._up):
            for target, source in copies:
                target.copy_(source, non_blocking=True)
            slot.up.record(self._up)

    def finish(self) -> None:
        """See `Transfer`. After an error there may be copies down that the host never waited for: also these."""
        stream = torch.cuda.current_stream(self._device)
        stream.wait_stream(self._down)
        stream.wait_stream(self._up)


def transfer_for(device: torch.device) -> Transfer:
    """The object that copies between a device and the host."""
    return StreamTransfer(device) if device.type == "cuda" else Transfer()
