"""The work: lists of parameter shapes that one optimizer step covers, all fp32."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Shape = tuple[int, ...]

BYTES_PER_ELEMENT = 28
"""The floor of a step in fp32: read p, g, m and v, write p, m and v."""


@dataclass(frozen=True)
class Case:
    """One model's worth of parameters.

    Attributes:
        name: what ``--cases`` calls it.
        title: what tables and plots call it.
        make_shapes: the shapes, in the order in which an optimizer gets them.
        flat_ceiling: whether the ceiling runs over one flat array of as many elements, instead of over arrays of these
            shapes. A bound for thousands of small tensors must not pay for their number.
        caches: what lies in them when a step begins (`bench.caches`).
        shown: whether ``--cases all`` includes it.
    """

    name: str
    title: str
    make_shapes: Callable[[], list[Shape]]
    flat_ceiling: bool = False
    caches: str = "cold"
    shown: bool = True

    @cached_property
    def shapes(self) -> list[Shape]:
        return self.make_shapes()

    @property
    def tensors(self) -> int:
        return len(self.shapes)

    @cached_property
    def elements(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def array_bytes(self) -> int:
        """Bytes of one of the arrays p, g, m and v."""
        return 4 * self.elements

    @property
    def step_bytes(self) -> int:
        """Bytes that a step has to move, at least."""
        return BYTES_PER_ELEMENT * self.elements

    def values(self, scale: float, seed: int) -> list[Tensor]:
        """One normal tensor a shape, the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(shape, generator=generator).mul_(scale) for shape in self.shapes]


def gpt2(layers: int = 12, width: int = 768, vocabulary: int = 50257, context: int = 1024) -> list[Shape]:
    """GPT-2's parameters in the order of its checkpoint: the head tied to ``wte``; q, k and v in one matrix."""
    norm = [(width,), (width,)]
    block = [
        *norm,  # ln_1
        (width, 3 * width),  # attn.c_attn
        (3 * width,),
        (width, width),  # attn.c_proj
        (width,),
        *norm,  # ln_2
        (width, 4 * width),  # mlp.c_fc
        (4 * width,),
        (4 * width, width),  # mlp.c_proj
        (width,),
    ]
    return [(vocabulary, width), (context, width), *(block * layers), *norm]


CASES = {
    case.name: case
    for case in (
        Case("16M", "1 × 16M elements", lambda: [(16 * 1024 * 1024,)]),
        Case("gpt2", "GPT-2 124M, 148 tensors", gpt2),
        Case("small", "10,000 × 64 elements", lambda: [(64,)] * 10_000, flat_ceiling=True, caches="used"),
        Case("small_cold", "10,000 × 64 elements, caches emptied", lambda: [(64,)] * 10_000, flat_ceiling=True),
        # Everything a run does, in a moment: for the tests.
        Case("tiny", "three small tensors", lambda: [(1000,), (3, 115), ()], shown=False),
    )
}
