"""Checks that the parameters which the timed steps made are right.

A step computes every element independently, so the check may take the elements in another order and a few at a time.
After the rounds, torch.optim.RAdam takes as many steps over the starting values, one piece after the other, and every
candidate's elements are compared with its result: all elements of up to `MOST_PIECES` pieces, and as many randomly
drawn pieces, always with the first and the last, of larger cases. On the first and the last piece `FusedRAdam`'s
``reference`` backend does the same, and the candidates that are FusedRAdam must have its bits.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.optimizers.baselines import HYPERPARAMETERS
from bench.optimizers.candidates import Candidate, Runner

TOLERANCE = 1e-6
"""Largest difference of parameters from torch.optim.RAdam's, relative to the largest parameter."""
PIECE = 2**18
"""Elements per piece: six arrays of this size stay in a core's cache."""
MOST_PIECES = 64
"""16.8 million elements; comparing them takes seconds."""


@dataclass
class CorrectnessCheck:
    """What the comparison with torch.optim.RAdam found.

    Attributes:
        steps: how many steps each candidate had taken.
        moved: how far torch.optim.RAdam moved the parameters, in the unit of `differences`. The tolerance must be well
            below it.
        differences: by candidate, the largest difference relative to the largest parameter.
        required: the candidates that must agree; an Adam computes something else.
        bits: by candidate that is FusedRAdam, whether the compared pieces have reference's bits.
        moves: by candidate, whether its parameters have changed and are finite.
    """

    steps: dict[str, int]
    moved: float = 0.0
    differences: dict[str, float] = field(default_factory=dict)
    required: list[str] = field(default_factory=list)
    bits: dict[str, bool] = field(default_factory=dict)
    moves: dict[str, bool] = field(default_factory=dict)

    @property
    def agrees(self) -> bool | None:
        """None where no candidate had to."""
        if not self.required:
            return None
        return (
            self.moved > 10 * TOLERANCE  # otherwise standing still would pass
            and all(self.differences[name] <= TOLERANCE for name in self.required)
            and all(self.bits.values())
            and all(self.moves.values())
        )

    def merge(self, other: CorrectnessCheck) -> None:
        """Adds the check of another memory group of the same case; the worse result of a candidate stays."""
        self.steps.update(other.steps)
        self.moved = min(self.moved, other.moved) if self.differences else other.moved
        for name, value in other.differences.items():
            self.differences[name] = max(value, self.differences.get(name, 0.0))
        self.required = list(dict.fromkeys([*self.required, *other.required]))
        for mine, theirs in ((self.bits, other.bits), (self.moves, other.moves)):
            for name, fine in theirs.items():
                mine[name] = fine and mine.get(name, True)


def pieces(tensors: list[Tensor], size: int) -> Iterator[Tensor]:
    """All elements in order, in flat pieces of `size`, the last one smaller."""
    held: list[Tensor] = []
    count = 0
    for tensor in tensors:
        rest = tensor.detach().reshape(-1)
        while count + rest.numel() >= size:
            yield torch.cat([*held, rest[: size - count]])
            rest, held, count = rest[size - count :], [], 0
        held.append(rest)
        count += rest.numel()
    if count:
        yield torch.cat(held)


def drawn(count: int, most: int) -> set[int]:
    """The indices of the pieces that are compared; the same for the same counts."""
    if count <= most:
        return set(range(count))
    between = random.Random(count).sample(range(1, count - 1), most - 2)
    return {0, count - 1, *between}


def stepped(
    make: Callable[..., torch.optim.Optimizer], start: Tensor, grad: Tensor, steps: int, **options: Any
) -> Tensor:
    """The parameters after an optimizer has taken so many steps from `start`."""
    param = start.clone().requires_grad_()
    param.grad = grad
    optimizer = make([param], **HYPERPARAMETERS, **options)
    for _ in range(steps):
        optimizer.step()
    return param.detach()


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs on one thread: pieces are small, and threads of a busy machine would wait for each other all the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
@one_thread()
def compare(
    candidates: list[Candidate], runners: dict[str, Runner], start: list[Tensor], grads: list[Tensor]
) -> CorrectnessCheck:
    """Compares the candidates of a memory group, which have all taken the same number of steps."""
    from radam_fused import FusedRAdam

    held = [c for c in candidates if c.name in runners and runners[c.name].params]
    found = CorrectnessCheck(
        {c.name: runners[c.name].steps for c in held}, required=[c.name for c in held if c.same_update]
    )
    if not held:
        return found
    steps = max(found.steps.values())
    largest, moved = 0.0, 0.0
    count = -(-sum(tensor.numel() for tensor in start) // PIECE)
    compared, ends = drawn(count, MOST_PIECES), (0, count - 1)
    worst = dict.fromkeys(found.steps, 0.0)
    found.moves = dict.fromkeys(found.steps, False)
    finite = dict.fromkeys(found.steps, True)
    arrays = (start, grads, *(runners[c.name].params for c in held))
    for index, (p, g, *found_there) in enumerate(zip(*(pieces(tensors, PIECE) for tensors in arrays), strict=True)):
        if index not in compared:
            continue
        with torch.enable_grad():
            expected = stepped(torch.optim.RAdam, p, g, steps, foreach=False)
            reference = stepped(FusedRAdam, p, g, steps, backend="reference") if index in ends else None
        largest = max(largest, float(expected.abs().max()))
        moved = max(moved, float((expected - p).abs().max()))
        for candidate, end in zip(held, found_there, strict=True):
            name = candidate.name
            worst[name] = max(worst[name], float((end - expected).abs().max()))
            found.moves[name] = found.moves[name] or not torch.equal(end, p)
            finite[name] = finite[name] and bool(end.isfinite().all())
            if candidate.ours and reference is not None:
                same = torch.equal(end.view(torch.int32), reference.view(torch.int32))
                found.bits[name] = same and found.bits.get(name, True)
    found.moved = moved / largest
    # An Adam computes something else, so its distance from RAdam means nothing.
    found.differences = {c.name: worst[c.name] / largest for c in held if c.kind == "radam" or c.same_update}
    found.moves = {name: moves and finite[name] for name, moves in found.moves.items()}
    return found
