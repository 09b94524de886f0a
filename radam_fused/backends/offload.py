"""``offload=True``: the moments are stored in the host's memory, and the host computes the step.

Parameters and gradients are copied chunk by chunk from the device into a ring of staging slots ("down"). The host steps
each chunk in place with the ``cpu`` backend, and the parameters are copied back ("up"). While the host computes one
chunk, the next one is copied down and the previous one up (`radam_fused.backends.staging`). With CPU parameters the
same code runs on ordinary memory, so that tests without a GPU cover all of it but the streams.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..modes import real
from ..numerics.layout import is_dense, layout_hash
from ..numerics.scalars import SKIP_STEP, UPDATE_RULE
from ..numerics.tensor_checks import check_gradients, check_layouts, check_stored, storage_view
from ..tensor_kinds import is_fake
from .fake_tensors import called_with_fakes
from .operator_args import StepArgs
from .ops import OPERATORS, Operators
from .registry import backend_for, check_host
from .staging import Slot, transfer_for

SLOT_BYTES = 64 * 2**20
"""Staging memory of a chunk: 32 MiB of parameters and 32 MiB of gradients, if they have one dtype. A copy of this size
takes one or two milliseconds, hundreds of times as long as starting it."""
SLOTS = 3
"""One slot is copied down, one is stepped, one is copied up."""
STAGED_ALIGNMENT = 64
"""Staged tensors start at multiples of this many bytes, for vector accesses and for views of every dtype."""


class Piece(NamedTuple):
    """A part of a parameter, or all of it, that is staged in one chunk."""

    param: Tensor
    """A view whose row-major order is that of the moments."""
    grad: Tensor
    """The same elements of the gradient."""
    start: int
    """The index of its first element's moments in the flat buffers."""
    row: int
    """The index of its scalars."""
    ahead: int
    """Its rng offset minus its start."""


def in_order_of_moments(param: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Views of a parameter and its gradient whose row-major order is that of the moments.

    The views are 1-d if both are contiguous in that order.
    """
    param, grad = param.detach(), grad.detach()
    if not param.is_contiguous() and is_dense(param):
        order = sorted(range(param.dim()), key=param.stride, reverse=True)
        param, grad = param.permute(order), grad.permute(order)
    if param.is_contiguous() and grad.is_contiguous():
        return param.view(-1), grad.view(-1)
    return param, grad


def aligned(nbytes: int) -> int:
    """A number of bytes, rounded up to a multiple of `STAGED_ALIGNMENT`."""
    return -(-nbytes // STAGED_ALIGNMENT) * STAGED_ALIGNMENT


def staged_bytes(param: Tensor, grad: Tensor) -> int:
    """How many bytes of a slot a parameter and its gradient take."""
    return aligned(param.numel() * param.element_size()) + aligned(grad.numel() * grad.element_size())


def chunks(wholes: Iterable[Piece], capacity: int) -> Iterator[list[Piece]]:
    """Divides parameters into chunks of at most `capacity` staged bytes.

    A parameter that does not fit is cut along its outermost dimension. If not even one of its rows fits into a slot,
    each row is cut as well.

    Args:
        wholes: one per parameter.
        capacity: bytes of a slot; at least 192, so that one element of a parameter and of its gradient fit.
    """
    chunk: list[Piece] = []
    used = 0
    for whole in wholes:
        waiting = [whole] if whole.param.numel() else []
        while waiting:
            piece = waiting.pop()
            param, grad, start, row, ahead = piece
            room = (capacity - used - 2 * STAGED_ALIGNMENT) // (param.element_size() + grad.element_size())
            if param.numel() > room:
                inner = param[:1].numel() if param.dim() else 1
                fitting = max(room, 0) // inner
                if chunk and (fitting == 0 or 4 * used > 3 * capacity):
                    yield chunk  # a new chunk, rather than a small piece at the end of this one
                    chunk, used = [], 0
                    waiting.append(piece)
                    continue
                if fitting == 0:
                    waiting += [
                        Piece(param[i], grad[i], start + i * inner, row, ahead) for i in reversed(range(len(param)))
                    ]
                    continue
                waiting.append(Piece(param[fitting:], grad[fitting:], start + fitting * inner, row, ahead))
                piece = Piece(param[:fitting], grad[:fitting], start, row, ahead)
            chunk.append(piece)
            used += staged_bytes(piece.param, piece.grad)
    if chunk:
        yield chunk


class Chunk:
    """The pieces that are staged in one slot, one after the other, each in the order of the moments.

    Attributes:
        slot: the slot.
        params, grads: the staged tensors, 1-d: arguments of the step operator.
        segments, scalar_index, rng_offsets: int64 tables for them: arguments of the step operator.
    """

    def __init__(self, pieces: Sequence[Piece], slot: Slot) -> None:
        self.slot = slot
        self._pieces = pieces
        self.params: list[Tensor] = []
        self.grads: list[Tensor] = []
        at = 0
        for piece in pieces:
            for staged, tensor in ((self.params, piece.param), (self.grads, piece.grad)):
                end = at + tensor.numel() * tensor.element_size()
                staged.append(slot.memory[at:end].view(tensor.dtype))
                at = aligned(end)
        layouts = [(piece.start, layout_hash([piece.param.numel()], [1])) for piece in pieces]
        with real():
            self._tables(layouts, pieces)

    def _tables(self, layouts: list[tuple[int, int]], pieces: Sequence[Piece]) -> None:
        self.segments = torch.tensor(layouts, dtype=torch.int64, device="cpu")
        rng_offsets = [piece.start + piece.ahead for piece in pieces]
        self.rng_offsets = torch.tensor(rng_offsets, dtype=torch.int64, device="cpu")
        self.scalar_index = torch.tensor([piece.row for piece in pieces], dtype=torch.int64, device="cpu")

    def down(self) -> list[tuple[Tensor, Tensor]]:
        """Targets and sources of the copies from the device: parameters and gradients."""
        params = [(shaped(to, piece.param), piece.param) for to, piece in zip(self.params, self._pieces, strict=True)]
        grads = [(shaped(to, piece.grad), piece.grad) for to, piece in zip(self.grads, self._pieces, strict=True)]
        return params + grads

    def up(self) -> list[tuple[Tensor, Tensor]]:
        """Targets and sources of the copies to the device: parameters alone."""
        return [(piece.param, shaped(of, piece.param)) for of, piece in zip(self.params, self._pieces, strict=True)]


def shaped(staged: Tensor, tensor: Tensor) -> Tensor:
    """A view of a staged tensor with the shape of the tensor that is copied into it."""
    return staged if tensor.dim() == 1 else staged.view(tensor.shape)


class Offloader:
    """Steps the parameters of one device on the host.

    Args:
        device: of the parameters and gradients.

    Raises:
        RuntimeError: the backend ``cpu`` cannot run here.
    """

    def __init__(self, device: torch.device) -> None:
        check_host()
        self._device = device
        self._host = OPERATORS["cpu"]
        self._transfer = transfer_for(device)
        self._ring: list[Slot] = []

    @property
    def operators(self) -> Operators:
        """The operators of a bucket whose moments and step counts are in the host's memory."""
        return Operators(self.step, self._grad_norm, self._host.scalars, backend=self._host.backend)

    @property
    def staging_bytes(self) -> int:
        """The size of the staging memory."""
        return sum(slot.memory.numel() for slot in self._ring)

    def _grad_norm(self, grads: list[Tensor]) -> Tensor:
        """The operator grad_norm of the gradients' device: the host then copies 8 KiB instead of all gradients."""
        grad_norm = OPERATORS[backend_for(self._device.type, "auto")].grad_norm
        return called_with_fakes(grad_norm)(grads) if is_fake(grads[0]) else grad_norm(grads)

    def step(self, *flat: Any) -> None:
        """The step operator (`radam_fused.backends.ops`) with moments on the CPU. Returns when they are written.

        The current stream waits until the parameters are written. With ``zero_grads`` it then zeroes the gradients.

        Args:
            *flat: the fields of `StepArgs`; parameters and gradients are on the device, all other tensors on the CPU.

        Raises:
            RuntimeError, TypeError, ValueError: a parameter or a gradient that does not fit, before anything is
                written.
        """
        args = StepArgs(*flat)
        with real():
            self._check(args)
        with real():
            places = list(zip(args.starts(), args.scalar_index.tolist(), args.offsets(), strict=True))
            skipped = not is_fake(args.scalars) and bool((args.scalars[:, UPDATE_RULE] == SKIP_STEP).all())
        if not skipped:
            self._reserve(args.params, args.grads)
            wholes = (
                Piece(*in_order_of_moments(param, grad), start, row, rng_offset - start)
                for param, grad, (start, row, rng_offset) in zip(args.params, args.grads, places, strict=True)
            )
            self._run_chunks(wholes, args)
        if args.zero_grads and args.grads:
            torch._foreach_zero_([storage_view(grad, refuse_overlaps=False) for grad in args.grads])

    def _check(self, args: StepArgs) -> None:
        params, grads = args.params, args.grads
        check_layouts(params, args.segments, args.exp_avg.dtype)
        check_gradients(params, grads)
        for index, (param, grad) in enumerate(zip(params, grads, strict=True)):
            if not is_fake(param):
                check_stored(**{f"parameter {index}": param, f"gradient of parameter {index}": grad})
            if param.device != self._device or param.dtype != params[0].dtype:
                raise ValueError(
                    f"tensor {index} of the lists is {param.dtype} on {param.device}: "
                    f"must be {params[0].dtype} on {self._device}, as its bucket is"
                )

    def _reserve(self, params: list[Tensor], grads: list[Tensor]) -> None:
        """Allocates the ring's memory for the step, at most `SLOTS` slots, before the step writes anything."""
        need = sum(map(staged_bytes, params, grads)) + 2 * STAGED_ALIGNMENT
        count = 1 if need <= SLOT_BYTES else SLOTS
        held = self._ring[0].memory.numel() if self._ring else 0
        if held < min(need, SLOT_BYTES) or len(self._ring) < count:
            self._ring = []  # frees the old ring first: the new one may reuse its memory
            self._ring = [self._transfer.slot(max(held, min(need, SLOT_BYTES))) for _ in range(count)]

    def _run_chunks(self, wholes: Iterable[Piece], args: StepArgs) -> None:
        """Copies every chunk down, steps it and copies it up; while the host steps one, others are being copied."""
        transfer = self._transfer
        under_way: deque[Chunk] = deque()

        def compute() -> None:
            chunk = under_way.popleft()
            transfer.wait(chunk.slot)
            step = called_with_fakes(self._host.step) if is_fake(args.exp_avg) else self._host.step
            step(
                *args._replace(
                    params=chunk.params,
                    grads=chunk.grads,
                    segments=chunk.segments,
                    scalar_index=chunk.scalar_index,
                    zero_grads=False,
                    rng_offsets=chunk.rng_offsets,
                )
            )
            transfer.up(chunk.slot, chunk.up())

        transfer.begin()
        try:
            for number, pieces in enumerate(chunks(wholes, self._ring[0].memory.numel())):
                chunk = Chunk(pieces, self._ring[number % len(self._ring)])
                transfer.down(chunk.slot, chunk.down())
                under_way.append(chunk)
                if len(under_way) == len(self._ring):  # the next chunk needs the slot of the oldest one
                    compute()
            while under_way:
                compute()
        finally:
            transfer.finish()
