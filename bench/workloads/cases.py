"""The work: lists of parameter shapes that one optimizer step covers, for the CPU and the GPU suite alike.

Elements are fp32 on the CPU, fp32 and bf16 on a GPU. What is not in a suite's default set is run by name; a case that
does not fit the machine's memory is reported as skipped, with what it would have needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from bench.workloads import model_shapes
from bench.workloads.model_shapes import Shape

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
        caches: what lies in them when a step begins on the CPU (`bench.harness.cache_state`).
        groups: parameter groups that the tensors are dealt out to, the same number to each.
        series: the growth curve that it is a point of, and what lies on that curve's axis; None for most.
        share: of the time that a case is given.
        shown: whether it is in the CPU suite's default set.
        dtypes: what a GPU runs it in.
    """

    name: str
    title: str
    make_shapes: Callable[[], list[Shape]]
    flat_ceiling: bool = False
    caches: str = "cold"
    groups: int = 1
    series: str | None = None
    share: float = 1.0
    shown: bool = True
    dtypes: tuple[str, ...] = ("fp32", "bf16")

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

    def grouped(self, params: Sequence[Tensor]) -> list[Any]:
        """What an optimizer is made from: the parameters, or their groups where there are several."""
        if self.groups == 1:
            return list(params)
        size = len(params) // self.groups
        return [{"params": list(params[k : k + size])} for k in range(0, len(params), size)]


def _equal(tensors: int, elements: int) -> list[Shape]:
    return [(elements,)] * tensors


def _growth() -> list[Case]:
    """Points of two curves: more tensors for 640,000 elements, and more elements in 100 tensors."""
    points = []
    for tensors in (1, 10, 100, 1000, 10_000):
        size = 640_000 // tensors
        title = f"640,000 elements in {tensors:,}"
        shapes = partial(_equal, tensors, size)
        points.append(Case(f"tensors-{tensors}", title, shapes, True, "used", series="tensors", share=0.2))
    for size in (64, 640, 6400, 64_000, 640_000):
        title = f"100 tensors of {size:,}"
        shapes = partial(_equal, 100, size)
        points.append(Case(f"elements-{100 * size}", title, shapes, series="elements", share=0.2))
    return points


CASES = {
    case.name: case
    for case in (
        Case("16M", "1 × 16M", partial(_equal, 1, 2**24)),
        Case("gpt2", "GPT-2 124M, 148 tensors", model_shapes.gpt2),
        Case("small", "10,000 × 64", partial(_equal, 10_000, 64), flat_ceiling=True, caches="used"),
        Case("small_cold", "10,000 × 64, caches emptied", partial(_equal, 10_000, 64), flat_ceiling=True),
        Case("256M", "1 × 256M", partial(_equal, 1, 2**28)),
        Case("resnet50", "ResNet-50, 161 tensors", model_shapes.resnet50),
        Case("vit_b", "ViT-B/16, 152 tensors", model_shapes.vit_b),
        Case("moe", "Mixture of experts, 5,034 tensors", model_shapes.mixture_of_experts, flat_ceiling=True),
        Case("groups", "465 groups of 1 × 64K", partial(_equal, 465, 2**16), groups=465),
        # 36 GiB for p, g, m and v of FusedRAdam and the ceiling.
        Case("llama", "Llama-3.2-1B, 146 tensors", model_shapes.llama, shown=False),
        # 16-bit parameters and fp32 moments are 96 GB; in fp32 it fits no GPU.
        Case("llama8b", "Llama-3-8B, 291 tensors", model_shapes.llama_8b, shown=False, dtypes=("bf16",)),
        *_growth(),
        # Everything a run does, in a moment: for the tests.
        Case("tiny", "three small tensors", lambda: [(1000,), (3, 115), ()], shown=False),
    )
}

SETS: dict[str, Callable[[Case], bool]] = {
    "default": lambda case: case.shown,
    "growth": lambda case: case.series is not None,
    "models": lambda case: case.shown and case.series is None,
    "all": lambda case: case.name != "tiny",
}
"""Names that stand for several cases."""


def chosen(names: Sequence[str]) -> list[str]:
    """The cases that names of cases and of sets stand for, each once, in the order of `CASES`.

    Raises:
        ValueError: a name that is neither.
    """
    for name in names:
        if name not in CASES and name not in SETS:
            raise ValueError(f"no case {name!r}: {', '.join([*SETS, *CASES])}")
    return [name for name, case in CASES.items() if name in names or any(s in SETS and SETS[s](case) for s in names)]
