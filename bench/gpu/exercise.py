"""A short run over small odd layouts, for compute-sanitizer to watch: ``python -m bench.gpu.exercise``.

Every path of a backend is taken: full tiles and ragged ends, misaligned and strided tensors, every pair of dtypes,
tables by value and in memory, ``flatten``, groups. The results are compared with `reference` on the CPU. As few of
torch's own kernels as possible run, since a sanitizer slows everything down.

``--plant`` does what a sanitizer has to notice (`bench.gpu.stray`).
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import Tensor

STEPS = 3
SHAPES = ((), (1,), (0,), (255,), (257,), (33, 17), (2500,))
MANY = 900
"""Tensors enough for tables that no longer fit in a kernel's arguments."""
FLOAT = (torch.float32, torch.float16, torch.bfloat16)
PAIRS = [(torch.float64, torch.float64), *((p, g) for p in FLOAT for g in FLOAT)]


def _odd(dtype: torch.dtype) -> list[Tensor]:
    """Starting values on the CPU, in order: `SHAPES`, misaligned, transposed, strided."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return [*(normal(*shape) for shape in SHAPES), normal(1031)[1:], normal(40, 31).t(), normal(700, 3)[:, 1]]


def _on(device: str, tensor: Tensor) -> Tensor:
    """A copy on a device with the same strides and misalignment, made by one transfer."""
    base = tensor._base if tensor._base is not None else tensor
    return base.clone().to(device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def train(device: str, backend: str, starts: list[Tensor], grad_dtype: torch.dtype, flatten: bool) -> list[Tensor]:
    """Parameters after some steps, on the CPU."""
    from radam_fused import FusedRAdam

    params = [torch.nn.Parameter(_on(device, start)) for start in starts]
    groups = [
        {"params": params[0::2], "weight_decay": 0.1},
        {"params": params[1::2], "betas": (0.9, 0.99), "maximize": True, "rectification": "none"},
    ]
    for param in params:
        if param.dtype != grad_dtype:
            param.grad_dtype = grad_dtype
    optimizer = FusedRAdam(groups, lr=0.01, backend=backend, flatten=flatten)
    for step in range(STEPS):
        # Thousands of transfers would take a sanitizer long, and show nothing new.
        for start, param in zip(starts, params, strict=True) if step == 0 or len(starts) < MANY else ():
            generator = torch.Generator().manual_seed(step)
            grad = torch.randn(start.shape, generator=generator, dtype=torch.float64).to(grad_dtype).to(device)
            param.grad = grad
        optimizer.step()
    return [param.detach().cpu() for param in params]


def exercise(device: str, backend: str) -> int:
    """Trains with a backend on a device and with `reference` on the CPU; returns how many runs were compared.

    Raises:
        AssertionError: the bits differ.
    """
    runs: list[tuple[list[Tensor], torch.dtype, bool]] = [(_odd(p), g, False) for p, g in PAIRS]
    runs.append((_odd(torch.float32)[: len(SHAPES)], torch.float32, True))
    runs.append(([torch.full((5,), float(k % 7)) for k in range(MANY)], torch.float32, False))
    for starts, grad_dtype, flatten in runs:
        expected = train("cpu", "reference", starts, grad_dtype, flatten)
        for k, (a, b) in enumerate(zip(train(device, backend, starts, grad_dtype, flatten), expected, strict=True)):
            same = torch.equal(a, b)
            assert same, f"{backend}: tensor {k} ({starts[0].dtype}, gradients {grad_dtype}) differs from reference"
    return len(runs)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.exercise", description=__doc__)
    parser.add_argument("--backends", nargs="+", default=["cuda", "triton"], metavar="NAME")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--plant", action="store_true", help="write out of bounds, and nothing else")
    options = parser.parse_args(arguments)
    if options.plant:
        from bench.gpu.stray import write_out_of_bounds

        write_out_of_bounds()
        return 0
    from radam_fused import available_backends

    available = available_backends()
    for backend in options.backends:
        if available[backend] is not None:
            print(f"absent {backend}: {available[backend]}")
        else:
            print(f"exercised {backend}: {exercise(options.device, backend)} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
