"""``python -m bench.gpu.sanitizer_workload``: a short run over small, irregular layouts under compute-sanitizer.

Every kernel and every path of a backend runs: full tiles and tails, misaligned and strided tensors, every pair of
dtypes, tables by value and in memory, ``flatten``, parameter groups, the gradient norm, scalars computed on the device,
cleared gradients, and low-precision state. The results are compared with `reference` on the CPU. As few of torch's own
kernels as possible run, because a sanitizer slows everything down.

``--plant`` makes an error that a sanitizer must report (`bench.gpu.planted_errors`).
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor

STEPS = 3
SHAPES = ((), (1,), (0,), (255,), (257,), (33, 17), (2500,))
MANY = 900
"""So many tensors that their table no longer fits into a kernel's arguments."""
FLOAT = (torch.float32, torch.float16, torch.bfloat16)
OPTIONS: tuple[dict[str, Any], ...] = (
    {"flatten": True},
    {"capturable": True},
    {"max_grad_norm": 0.5},  # partial sums and scalars, each with shared memory
    {"zero_grads": True},
)
LOW_PRECISION: tuple[dict[str, Any], ...] = (
    {"state_dtype": torch.int8},  # the kernel whose threads exchange their largest value
    {"state_dtype": torch.float16, "rounding": "stochastic"},
    {"state_dtype": torch.bfloat16, "master_weights": "split"},
    {"master_weights": "kahan"},
)
PAIRS = [(torch.float64, torch.float64), *((p, g) for p in FLOAT for g in FLOAT)]


def _irregular(dtype: torch.dtype) -> list[Tensor]:
    """Starting values on the CPU: the shapes of `SHAPES`, then a misaligned, a transposed and a strided tensor."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return [*(normal(*shape) for shape in SHAPES), normal(1031)[1:], normal(40, 31).t(), normal(700, 3)[:, 1]]


def _on(device: str, tensor: Tensor) -> Tensor:
    """Copies a tensor to a device in one transfer; strides and misalignment stay."""
    base = tensor._base if tensor._base is not None else tensor
    return base.clone().to(device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


class Run(NamedTuple):
    """Tensors to train, and the optimizer's options."""

    starts: list[Tensor]
    grad_dtype: torch.dtype
    options: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.starts[0].dtype}, gradients {self.grad_dtype}, {self.options}"


def runs(timed: bool = False) -> list[Run]:
    """All runs, or only those whose kernels the benchmarks time."""
    plain = _irregular(torch.float32)
    half = [*_irregular(torch.bfloat16), torch.linspace(-1.0, 1.0, 4099).bfloat16()]  # long enough for 8-bit moments
    pairs = [pair for pair in PAIRS if not timed or pair[0] == pair[1]]
    return [
        *(Run(_irregular(p), g, {}) for p, g in pairs),
        *(Run(plain[: len(SHAPES)], torch.float32, options) for options in (OPTIONS[:1] if timed else OPTIONS)),
        *(Run(half, torch.bfloat16, options) for options in (() if timed else LOW_PRECISION)),
        Run([torch.full((5,), float(k % 7)) for k in range(MANY)], torch.float32, {}),
    ]


def train(device: str, backend: str, run: Run) -> list[Tensor]:
    """The parameters after `STEPS` steps, on the CPU."""
    starts, grad_dtype, options = run
    from radam_fused import FusedRAdam

    params = [torch.nn.Parameter(_on(device, start)) for start in starts]
    groups = [
        {"params": params[0::2], "weight_decay": 0.1},
        {"params": params[1::2], "betas": (0.9, 0.99), "maximize": True, "rectification": "none"},
    ]
    for param in params:
        if param.dtype != grad_dtype:
            param.grad_dtype = grad_dtype
    optimizer = FusedRAdam(groups, lr=0.01, backend=backend, **options)
    for step in range(STEPS):
        # Of many tensors only the first step gets gradients: under a sanitizer, thousands of transfers take long.
        for start, param in zip(starts, params, strict=True) if step == 0 or len(starts) < MANY else ():
            generator = torch.Generator().manual_seed(step)
            grad = torch.randn(start.shape, generator=generator, dtype=torch.float64).to(grad_dtype).to(device)
            param.grad = grad
        optimizer.step()
        if options.get("zero_grads"):
            assert not any(param.grad.any() for param in params if param.grad is not None)
    return [param.detach().cpu() for param in params]


def compare_with_reference(device: str, backend: str, timed: bool = False) -> int:
    """Trains with a backend on a device and with `reference` on the CPU; returns the number of runs.

    Raises:
        AssertionError: the bits differ.
    """
    every = runs(timed)
    for run in every:
        expected = train("cpu", "reference", run)
        for k, (a, b) in enumerate(zip(train(device, backend, run), expected, strict=True)):
            assert torch.equal(a, b), f"{backend}: tensor {k} ({run}) differs from reference"
    return len(every)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.sanitizer_workload", description=__doc__)
    parser.add_argument("--backends", nargs="+", default=["cuda", "triton"], metavar="NAME")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--timed", action="store_true", help="only the kernels that the benchmarks time")
    parser.add_argument("--plant", action="store_true", help="only write out of bounds")
    options = parser.parse_args(arguments)
    if options.plant:
        from bench.gpu.planted_errors import write_out_of_bounds

        write_out_of_bounds()
        return 0
    from radam_fused import available_backends

    available = available_backends()
    for backend in options.backends:
        if available[backend] is not None:
            print(f"skipped {backend}: {available[backend]}")
        else:
            compared = compare_with_reference(options.device, backend, options.timed)
            print(f"ran {backend}: {compared} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
