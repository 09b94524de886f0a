"""The cases: lists of parameter shapes that one optimizer step covers, the same for the CPU and the GPU suite.

Elements are fp32 on the CPU, fp32 and bf16 on a GPU; bf16 means 16-bit parameters and gradients. A case outside a
suite's default set runs when ``--cases`` names it. A case that does not fit into memory is reported as skipped, with
the memory that it needs.
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

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def bytes_per_element(itemsize: int = 4, state_bytes: int = 8) -> int:
    """Bytes that a step moves at least: reads p, g and the state, writes p and the state."""
    return 3 * itemsize + 2 * state_bytes


BYTES_PER_ELEMENT = bytes_per_element()
"""28: fp32 parameters with two fp32 moments."""


@dataclass(frozen=True)
class Case:
    """The parameters of one model.

    Attributes:
        name: what ``--cases`` calls it.
        title: what tables and plots call it.
        make_shapes: the shapes, in the order in which an optimizer gets them.
        flat_roofline: whether the roofline runs over one flat array of as many elements instead of arrays of these
            shapes. The lower bound for thousands of small tensors must not pay for their number.
        caches: what the CPU's caches hold when a step begins (`bench.harness.cache_state`).
        groups: number of parameter groups; each gets the same number of tensors.
        series: the scaling curve that this case is a point of, named after the curve's x-axis; None for most.
        share: of the time budget of a case.
        shown: whether the CPU suite's default set has it.
        dtypes: what a GPU runs it in.
    """

    name: str
    title: str
    make_shapes: Callable[[], list[Shape]]
    flat_roofline: bool = False
    caches: str = "cold"
    groups: int = 1
    series: str | None = None
    share: float = 1.0
    shown: bool = True
    dtypes: tuple[str, ...] = tuple(DTYPES)

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
        """Bytes of one of the fp32 arrays p, g, m and v."""
        return 4 * self.elements

    def step_bytes(self, dtype: torch.dtype = torch.float32, state_bytes: int = 8) -> int:
        """Bytes that a step over the case moves at least; by default FusedRAdam's, whose moments are fp32."""
        return bytes_per_element(dtype.itemsize, state_bytes) * self.elements

    def values(self, scale: float, seed: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Tensor]:
        """One normally distributed tensor per shape, each with its own memory; the same for the same seed."""
        generator = torch.Generator(device).manual_seed(seed)
        empty = [torch.empty(shape, dtype=dtype, device=device) for shape in self.shapes]
        return [tensor.normal_(0.0, scale, generator=generator) for tensor in empty]

    def grouped(self, params: Sequence[Tensor]) -> list[Any]:
        """The optimizer's first argument: the parameters, or parameter groups where `groups` is above 1."""
        if self.groups == 1:
            return list(params)
        size = len(params) // self.groups
        return [{"params": list(params[k : k + size])} for k in range(0, len(params), size)]


def _equal(tensors: int, elements: int) -> list[Shape]:
    return [(elements,)] * tensors


def _scaling() -> list[Case]:
    """Points of two curves: more tensors for 640,000 elements, and more elements in 100 tensors."""
    points = []
    for tensors in (1, 10, 100, 1000, 10_000):
        title = f"640,000 elements in {tensors:,}"
        shapes = partial(_equal, tensors, 640_000 // tensors)
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
        Case("small", "10,000 × 64", partial(_equal, 10_000, 64), flat_roofline=True, caches="used"),
        Case("small_cold", "10,000 × 64, caches emptied", partial(_equal, 10_000, 64), flat_roofline=True),
        Case("256M", "1 × 256M", partial(_equal, 1, 2**28)),
        Case("resnet50", "ResNet-50, 161 tensors", model_shapes.resnet50),
        Case("vit_b", "ViT-B/16, 152 tensors", model_shapes.vit_b),
        Case("moe", "Mixture of experts, 5,034 tensors", model_shapes.mixture_of_experts, flat_roofline=True),
        Case("groups", "465 groups of 1 × 64K", partial(_equal, 465, 2**16), groups=465),
        # FusedRAdam and the roofline need 36 GiB for p, g, m and v.
        Case("llama", "Llama-3.2-1B, 146 tensors", model_shapes.llama, shown=False),
        # 16-bit parameters with fp32 moments take 96 GB; fp32 parameters fit no GPU.
        Case("llama8b", "Llama-3-8B, 291 tensors", model_shapes.llama_8b, shown=False, dtypes=("bf16",)),
        *_scaling(),
        # For the tests: the whole benchmark on a case that takes milliseconds.
        Case("tiny", "three small tensors", lambda: [(1000,), (3, 115), ()], shown=False),
    )
}

SETS: dict[str, Callable[[Case], bool]] = {
    "default": lambda case: case.shown,
    "scaling": lambda case: case.series is not None,
    "models": lambda case: case.shown and case.series is None,
    "all": lambda case: case.name != "tiny",
}
"""Names that stand for several cases."""

GPU_DEFAULT = ["256M", "llama", "small", "gpt2", "resnet50"]
"""The GPU suite's default set, the most important case first: the run's time may end before its cases."""


def chosen(names: Sequence[str]) -> list[str]:
    """The cases that names of cases and of sets stand for, each once, in the order of `CASES`.

    Raises:
        ValueError: a name is neither.
    """
    for name in names:
        if name not in CASES and name not in SETS:
            raise ValueError(f"no case {name!r}: {', '.join([*SETS, *CASES])}")
    return [name for name, case in CASES.items() if name in names or any(s in SETS and SETS[s](case) for s in names)]
