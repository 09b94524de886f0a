"""The CUDA kernels' bodies on the host: compiles cuda_host_*.cpp and offers them as operators, on CPU tensors.

The tables and the loop over tiles are the lines that the GPU runs; what differs is that blocks and threads come one
after the other, in an order and number of the caller's choice.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radam_fused.backends.operator_args import StepArgs
from radam_fused.numerics.layout import PARTIAL_SUMS
from radam_fused.numerics.scalars import StepScalars
from radam_fused.numerics.tensor_checks import check_gradients, overlaps_itself
from tests.support.paths import ROOT

HERE = Path(__file__).parent
NUMERIC_FLAGS = ("-ffp-contract=off", "-fno-fast-math")
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra", *NUMERIC_FLAGS)
NUMBERS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
"""The extension's own numbering (csrc/numerics/dtypes.h)."""
MOMENTS = {torch.float32: 0, torch.float64: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
MASTERS = {torch.float32: 1, torch.int16: 2, torch.bfloat16: 3, torch.float16: 3}
"""The same of state formats (csrc/numerics/quantization.h); without master weights 0."""


@dataclass(frozen=True)
class Geometry:
    """How the launch is made; none of it may change a bit."""

    blocks: int = 1
    threads: int = 128
    backwards: bool = False
    """Last block and last thread first."""
    in_tables: bool = False
    """Scalars and gradients' pointers in tables, as when there are too many to be passed by value."""
    skipped: int = -1
    """For negative controls: the thread (counted over all blocks) that does not run."""
    only_block: int = -1
    """The block that runs alone, where the others would take long."""


class _HostTensor(ctypes.Structure):
    _fields_ = (
        ("param", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("start", "row", "grad_dtype", "dim", "rng_offset")),
        *((name, ctypes.POINTER(ctypes.c_int64)) for name in ("size", "param_stride", "grad_stride")),
    )


class _HostState(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("exp_avg", "exp_avg_sq", "scales", "sq_scales", "master")),
        *((name, ctypes.c_int64) for name in ("param_dtype", "moments", "master_format", "stochastic")),
    )


class _RowsArguments(ctypes.Structure):
    """As csrc/numerics/scalars_op.h has it."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("group_scalars", "pairs")),
        ("row_count", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("counted", "steps", "taken")),
        ("segment_count", ctypes.c_int64),
        ("lr", ctypes.c_void_p),
        ("lr_stride", ctypes.c_int64),
        ("lr_is_double", ctypes.c_bool),
        ("squares", ctypes.c_void_p),
        ("square_count", ctypes.c_int64),
        ("max_grad_norm", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("grad_scale", "found_inf", "rows", "norm")),
    )


def longs(values: Iterable[int]) -> ctypes.Array[ctypes.c_int64]:
    values = tuple(values)
    return (ctypes.c_int64 * len(values))(*values)


def same_layout(tensor: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """A copy with the same strides and offset in a storage of its own, gaps and misalignment included."""
    original = tensor.untyped_storage()
    storage = torch.UntypedStorage(original.nbytes(), device=device).copy_(original)
    empty = torch.empty(0, dtype=tensor.dtype, device=device)
    return empty.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def compiler() -> list[str]:
    """The C++ compiler of this machine, with its arguments."""
    return shlex.split(os.environ.get("CXX", "")) or [next(filter(shutil.which, ("c++", "g++", "clang++")))]


def _hash_of_sources() -> str:
    """A hash of what the library is made from: the compiler, its flags and the sources."""
    version = subprocess.run([*compiler(), "--version"], check=True, capture_output=True).stdout
    found = hashlib.sha256(repr((compiler(), FLAGS)).encode() + version)
    for path in sorted([*(ROOT / "csrc").rglob("*.[hc]*"), *HERE.glob("cuda_host*")]):
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def compile_host_kernels() -> ctypes.CDLL:
    """The kernels as a shared library, compiled under the numeric contract; once for all processes and all runs."""
    folder = ROOT / "build" / "host_kernels" / _hash_of_sources()
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "host_kernels.so"
    with (folder / "host_kernels.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _compile(library)
    return ctypes.CDLL(str(library))


def _compile(library: Path) -> None:
    objects = [library.with_name(f"{kernel}.o") for kernel in ("step", "scalars", "low_precision")]
    sources = [HERE / f"cuda_host_{one.stem}.cpp" for one in objects]
    commands = [
        [*compiler(), *FLAGS, f"-I{ROOT / 'csrc'}", "-c", s, "-o", o] for s, o in zip(sources, objects, strict=True)
    ]
    running = [subprocess.Popen([*map(str, command)]) for command in commands]
    assert [one.wait() for one in running] == [0] * len(running)
    linked = library.with_suffix(".new")  # a process that is killed leaves no half of a library
    subprocess.run([*compiler(), "-shared", *map(str, objects), "-o", str(linked)], check=True)
    linked.rename(library)


def host_step(library: ctypes.CDLL, geometry: Geometry) -> Callable[..., None]:
    """The operator step, as in `radam_fused.backends.ops`."""

    def step(*flat: Any) -> None:
        args = StepArgs(*flat)
        state = args.state
        check_gradients(args.params, args.grads)
        param_dtype = args.params[0].dtype
        scales, master = state.scales, state.master
        host_state = _HostState(
            *(state.exp_avg.data_ptr(), state.exp_avg_sq.data_ptr()),
            *(None, None) if scales is None else (scales[0].data_ptr(), scales[1].data_ptr()),
            None if master is None else master.data_ptr(),
            *(NUMBERS[param_dtype], MOMENTS[state.exp_avg.dtype], 0 if master is None else MASTERS[master.dtype]),
            args.stochastic and param_dtype.itemsize == 2,
        )
        places = zip(args.starts(), args.scalar_index.tolist(), args.offsets(), strict=True)
        tensors = (_HostTensor * len(args.params))()
        for k, (param, grad, (start, index, rng_offset)) in enumerate(
            zip(args.params, args.grads, places, strict=True)
        ):
            where = (param.data_ptr(), grad.data_ptr(), start, index)
            layout = (longs(param.shape), longs(param.stride()), longs(grad.stride()))
            tensors[k] = _HostTensor(*where, NUMBERS[grad.dtype], param.dim(), rng_offset, *layout)
        library.radam_fused_step(
            tensors,
            ctypes.c_int64(len(args.params)),
            ctypes.byref(host_state),
            ctypes.c_void_p(args.scalars.data_ptr()),
            ctypes.c_int64(args.scalars.shape[0]),
            ctypes.c_int64(args.zero_grads),
            longs(astuple(geometry)),
        )
        for grad in args.grads if args.zero_grads else ():
            if overlaps_itself(grad):  # the kernel leaves them to the operator (csrc/args/step_args.h)
                grad.zero_()

    return step


def host_squares(library: ctypes.CDLL, geometry: Geometry) -> Callable[[list[Tensor]], Tensor]:
    """The operator grad_norm, as in `radam_fused.backends.ops`."""

    def squares(grads: list[Tensor]) -> Tensor:
        tensors = (_HostTensor * len(grads))()
        for k, grad in enumerate(grads):
            strides = longs(grad.stride())
            layout = (longs(grad.shape), strides, strides)
            tensors[k] = _HostTensor(None, grad.data_ptr(), 0, 0, NUMBERS[grad.dtype], grad.dim(), 0, *layout)
        sums = torch.full((1, PARTIAL_SUMS), -1.0, dtype=torch.float64)
        library.radam_fused_grad_norm(
            tensors,
            ctypes.c_int64(len(grads)),
            ctypes.c_int64(NUMBERS[grads[0].dtype]),
            ctypes.c_void_p(sums.data_ptr()),
            longs(astuple(geometry)),
        )
        return sums

    return squares


def host_scalars(library: ctypes.CDLL, geometry: Geometry) -> Callable[..., tuple[Tensor, Tensor]]:
    """The operator scalars, as in `radam_fused.backends.ops`."""

    def rows(
        group_scalars: Tensor,
        pairs: Tensor,
        counted: Tensor,
        steps: Tensor,
        taken: Tensor,
        lr: Tensor | None,
        squares: Tensor | None,
        max_grad_norm: float,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        def at(tensor: Tensor | None) -> int | None:
            return None if tensor is None else tensor.data_ptr()

        made = torch.full((len(pairs), len(StepScalars._fields)), -1.0, dtype=torch.float64)
        norm = torch.full((), -1.0, dtype=torch.float64)
        arguments = _RowsArguments(
            *(at(group_scalars), at(pairs), len(pairs), at(counted), at(steps), at(taken), len(steps)),
            *(at(lr), 0 if lr is None else lr.stride(0), lr is not None and lr.dtype == torch.float64),
            *(at(squares), 0 if squares is None else len(squares), max_grad_norm),
            *map(at, (grad_scale, found_inf, made, norm)),
        )
        library.radam_fused_scalars(ctypes.byref(arguments), longs(astuple(geometry)))
        return made, norm

    return rows
