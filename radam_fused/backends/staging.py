"""Copies between a device and the host's staging memory, on streams of their own; on the CPU the same calls, at once.

A `Slot` of staging memory goes round: copied down, waited for, computed in, copied up, and down again once that is
done. Nothing outlives `Transfer.finish` as far as the caller's stream is concerned, so tensors need no `record_stream`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Copies = Sequence[tuple[Tensor, Tensor]]
"""Targets and sources, each pair of one shape and dtype."""


class Slot:
    """One piece of staging memory.

    Attributes:
        memory: uint8, pinned where copies are to run beside the host.
        down, up: events of the last copies into it and out of it; None where copies are done at once.
    """

    def __init__(self, memory: Tensor, events: bool) -> None:
        self.memory = memory
        self.down = torch.cuda.Event() if events else None
        self.up = torch.cuda.Event() if events else None


class Transfer:
    """Copies for parameters on the CPU: done when they are asked for."""

    def slot(self, nbytes: int) -> Slot:
        """A slot of that many bytes."""
        return Slot(torch.empty(nbytes, dtype=torch.uint8, device="cpu"), events=False)

    def begin(self) -> None:
        """What the current stream has been given so far comes before all copies from here on."""

    def down(self, slot: Slot, copies: Copies) -> None:
        """Copies from the device into a slot, once the slot's last copies up are done."""
        for target, source in copies:
            target.copy_(source)

    def wait(self, slot: Slot) -> None:
        """Returns when the slot's last copies down are done."""

    def up(self, slot: Slot, copies: Copies) -> None:
        """Copies from a slot to the device."""
        for target, source in copies:
            target.copy_(source)

    def finish(self) -> None:
        """What the current stream is given from here on comes after all copies."""


class StreamTransfer(Transfer):
    """Copies for parameters on a GPU: one stream down and one up, so that both directions of the bus are used.

    A tensor with gaps passes through a temporary on the device, which torch makes on the stream that copies.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._down, self._up = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def slot(self, nbytes: int) -> Slot:
        """See `Transfer`; pinned."""
        return Slot(torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True), events=True)

    def begin(self) -> None:
        """See `Transfer`."""
        self._down.wait_stream(torch.cuda.current_stream(self._device))

    def down(self, slot: Slot, copies: Copies) -> None:
        """See `Transfer`."""
        assert slot.down is not None
        assert slot.up is not None
        with torch.cuda.stream(self._down):
            self._down.wait_event(slot.up)  # no wait at all for a slot's first use
            for target, source in copies:
                target.copy_(source, non_blocking=True)
            slot.down.record(self._down)

    def wait(self, slot: Slot) -> None:
        """See `Transfer`."""
        assert slot.down is not None
        slot.down.synchronize()

    def up(self, slot: Slot, copies: Copies) -> None:
        """See `Transfer`; whoever calls has waited for the copies down, which came after the current stream's work."""
        assert slot.up is not None
        with torch.cuda.stream(self._up):
            for target, source in copies:
                target.copy_(source, non_blocking=True)
            slot.up.record(self._up)

    def finish(self) -> None:
        """See `Transfer`; also of copies down for which no step has waited, after an error."""
        stream = torch.cuda.current_stream(self._device)
        stream.wait_stream(self._down)
        stream.wait_stream(self._up)


def transfer_for(device: torch.device) -> Transfer:
    """What copies between a device and the host."""
    return StreamTransfer(device) if device.type == "cuda" else Transfer()
