"""The work of the GPU benchmarks: parameter shapes of whole models, in fp32 and in bf16.

bf16 means 16-bit parameters and gradients. The moments are the optimizer's affair: fp32 here, bf16 in torch.optim,
which then moves fewer bytes and rounds most updates of exp_avg_sq away.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.cases import Case, Shape, gpt2

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def llama(
    layers: int = 16,
    width: int = 2048,
    inner: int = 8192,
    key_value: int = 512,
    vocabulary: int = 128_256,
) -> list[Shape]:
    """Llama-3.2-1B's parameters in the order of its checkpoint, the head tied to the embedding."""
    block: list[Shape] = [
        (width, width),  # q_proj
        (key_value, width),  # k_proj
        (key_value, width),  # v_proj
        (width, width),  # o_proj
        (inner, width),  # gate_proj
        (inner, width),  # up_proj
        (width, inner),  # down_proj
        (width,),  # input_layernorm
        (width,),  # post_attention_layernorm
    ]
    return [(vocabulary, width), *(block * layers), (width,)]


def resnet50() -> list[Shape]:
    """torchvision's ResNet-50."""

    def convolution(outputs: int, inputs: int, size: int) -> list[Shape]:
        return [(outputs, inputs, size, size), (outputs,), (outputs,)]  # and its batch norm

    shapes = convolution(64, 3, 7)
    inputs = 64
    for layer, blocks in enumerate((3, 4, 6, 3)):
        width = 64 << layer
        for block in range(blocks):
            shapes += convolution(width, inputs, 1) + convolution(width, width, 3) + convolution(4 * width, width, 1)
            if block == 0:
                shapes += convolution(4 * width, inputs, 1)  # downsample
            inputs = 4 * width
    return [*shapes, (1000, inputs), (1000,)]


CASES = {
    case.name: case
    for case in (
        Case("256M", "1 × 256M", lambda: [(256 * 1024 * 1024,)]),
        Case("llama", "Llama-3.2-1B, 146 tensors", llama),
        Case("small", "10,000 × 64", lambda: [(64,)] * 10_000),
        Case("gpt2", "GPT-2 124M, 148 tensors", gpt2),
        Case("resnet50", "ResNet-50, 161 tensors", resnet50),
        # Everything a run does, in a moment: for the tests.
        Case("tiny", "three small tensors", lambda: [(1000,), (3, 115), ()], shown=False),
    )
}
SHOWN = [name for name, case in CASES.items() if case.shown]


def pass_bytes(case: Case, dtype: torch.dtype, moment_dtype: torch.dtype) -> int:
    """Bytes that one pass has to move: reads p, g, m and v, writes p, m and v."""
    return (3 * dtype.itemsize + 4 * moment_dtype.itemsize) * case.elements


def values(case: Case, dtype: torch.dtype, device: str, scale: float, seed: int) -> list[Tensor]:
    """One normal tensor a shape, each with memory of its own as a model's; the same for the same seed."""
    generator = torch.Generator(device).manual_seed(seed)
    return [
        torch.empty(shape, dtype=dtype, device=device).normal_(0.0, scale, generator=generator) for shape in case.shapes
    ]
