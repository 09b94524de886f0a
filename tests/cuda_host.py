"""The CUDA kernel's body on the host: compiles cuda_walk.cpp and offers it as a step, on CPU tensors.

The tables and the walk over tiles are the lines that the GPU runs; what differs is that blocks and threads come one
after the other, in an order and number of the caller's choice.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from torch import Tensor

from radam_fused.checks import check_gradients

HERE = Path(__file__).parent
NUMERIC_FLAGS = ("-ffp-contract=off", "-fno-fast-math")
NUMBERS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
"""The extension's own numbering (csrc/dtypes.h)."""


@dataclass(frozen=True)
class Geometry:
    """How the walk is made; none of it may change a bit."""

    blocks: int = 1
    threads: int = 128
    backwards: bool = False
    """Last block and last thread first."""
    in_tables: bool = False
    """Rows and gradients' addresses in tables, as when there are too many to go by value."""
    skipped: int = -1
    """For negative controls: the thread (counted over all blocks) that does not run."""
    only_block: int = -1
    """The block that runs alone, where the others would take long."""


class _HostTensor(ctypes.Structure):
    _fields_ = (
        ("param", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("start", "row", "grad_dtype", "dim")),
        *((name, ctypes.POINTER(ctypes.c_int64)) for name in ("size", "param_stride", "grad_stride")),
    )


def twin(tensor: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """A copy with the same strides and offset in a storage of its own, gaps and misalignment included."""
    original = tensor.untyped_storage()
    storage = torch.UntypedStorage(original.nbytes(), device=device).copy_(original)
    empty = torch.empty(0, dtype=tensor.dtype, device=device)
    return empty.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def compile_walk(folder: Path) -> ctypes.CDLL:
    """The walk as a shared library, compiled under the numeric contract."""
    compiler = shlex.split(os.environ.get("CXX", "")) or [next(filter(shutil.which, ("c++", "g++", "clang++")))]
    library = folder / "walk.so"
    flags = ("-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", *NUMERIC_FLAGS)
    command = [*compiler, *flags, f"-I{HERE.parent / 'csrc'}", str(HERE / "cuda_walk.cpp"), "-o", str(library)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


def host_step(library: ctypes.CDLL, geometry: Geometry) -> Callable[..., None]:
    """A step as `radam_fused.ops` describes it."""

    def step(
        params: list[Tensor],
        grads: list[Tensor],
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        segments: Tensor,
        row_of: Tensor,
        rows: Tensor,
    ) -> None:
        check_gradients(params, grads)

        def longs(values: tuple[int, ...]) -> ctypes.Array[ctypes.c_int64]:
            return (ctypes.c_int64 * len(values))(*values)

        starts, which = segments[:, 0].tolist(), row_of.tolist()
        tensors = (_HostTensor * len(params))()
        for k, (param, grad) in enumerate(zip(params, grads, strict=True)):
            where = (param.data_ptr(), grad.data_ptr(), starts[k], which[k])
            layout = (longs(param.shape), longs(param.stride()), longs(grad.stride()))
            tensors[k] = _HostTensor(*where, NUMBERS[grad.dtype], param.dim(), *layout)
        library.radam_fused_walk(
            tensors,
            ctypes.c_int64(len(params)),
            ctypes.c_int64(NUMBERS[params[0].dtype]),
            ctypes.c_void_p(exp_avg.data_ptr()),
            ctypes.c_void_p(exp_avg_sq.data_ptr()),
            ctypes.c_void_p(rows.data_ptr()),
            ctypes.c_int64(rows.shape[0]),
            longs(astuple(geometry)),
        )

    return step
