"""Compiles bandwidth_roofline.cpp, when a benchmark first needs it, and calls it on lists of tensors."""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

SOURCE = Path(__file__).with_name("bandwidth_roofline.cpp")
FLAGS = ["-O3", "-std=c++17", "-fopenmp", "-shared", "-fPIC"]


def compiler() -> list[str]:
    """The C++ compiler as a command line: ``CXX``, else the first on PATH, as in setup.py."""
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    raise RuntimeError(f"no C++ compiler: {named[0] if named else 'c++, g++, clang++'} not found")


def compiler_version() -> str | None:
    """The first line of what the compiler says of itself, or None where there is no compiler."""
    try:
        asked = subprocess.run([*compiler(), "--version"], capture_output=True, text=True, check=True)
    except (RuntimeError, OSError, subprocess.CalledProcessError):
        return None
    return asked.stdout.splitlines()[0]


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled roofline.

    torch must have been imported before: its OpenMP runtime is then the one that the dynamic linker binds this library
    to, and the roofline runs on torch's own pool of threads instead of a second one that gets in its way.
    """
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "roofline.so"
        command = [*compiler(), *FLAGS, str(SOURCE), "-o", str(built)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            raise RuntimeError(f"the compiler refused {SOURCE.name}: {made.stderr.strip()[-400:]}")
        loaded = ctypes.CDLL(str(built))  # stays mapped when the file goes
    loaded.radam_bench_roofline.restype = None
    return loaded


def prepare(
    p: Sequence[Tensor], g: Sequence[Tensor], m: Sequence[Tensor], v: Sequence[Tensor], threads: int
) -> Callable[[], None]:
    """A call that adds g to p, to m and to v, all lists of contiguous fp32 tensors of the same lengths.

    The pointers are gathered here, once; the call itself is one foreign call. The tensors must outlive it.
    """
    numel = [tensor.numel() for tensor in p]
    for tensors in (p, g, m, v):
        if [tensor.numel() for tensor in tensors] != numel:
            raise ValueError("p, g, m and v differ in length")
    addresses = ctypes.c_void_p * len(numel)
    arguments = (
        *(addresses(*(tensor.data_ptr() for tensor in tensors)) for tensors in (p, g, m, v)),
        (ctypes.c_int64 * len(numel))(*numel),
        ctypes.c_int64(len(numel)),
        ctypes.c_int(threads),
    )
    return functools.partial(library().radam_bench_roofline, *arguments)
