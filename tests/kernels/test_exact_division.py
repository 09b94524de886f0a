"""Square roots and divisions of the CUDA kernels, on the host: correctly rounded for every approximation of a GPU.

PTX allows the approximate reciprocal an error of 1 unit in the last place and that of the root 2^-22.9, 2 units; here
each starts from the correctly rounded one and is moved by as much.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.cuda_host import NUMERIC_FLAGS
from tests.support.helpers import same_bits
from tests.support.paths import ROOT

COUNT = 2**20
LEAST_ROOT, MOST_ROOT = 2.0**-101, 2.0**80
LEAST_DIVIDEND, MOST_DIVIDEND = 2.0**-70, 2.0**60
"""As OrdinaryRange has them (csrc/cuda/exact_division.h)."""


@pytest.fixture(scope="module")
def division(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shlex.split(os.environ.get("CXX", "")) or [next(filter(shutil.which, ("c++", "g++", "clang++")))]
    library = tmp_path_factory.mktemp("division") / "division.so"
    source = Path(__file__).with_name("exact_division.cpp")
    flags = ("-std=c++17", "-O2", "-shared", "-fPIC", *NUMERIC_FLAGS, f"-I{ROOT / 'csrc'}")
    subprocess.run([*compiler, *flags, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def call(function: ctypes._CFuncPtr, *arguments: int | Tensor) -> None:
    function(*(ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else ctypes.c_int64(a) for a in arguments))


def numbers(least: float, most: float, seed: int) -> Tensor:
    """Of every binade, with random mantissas and those at its ends."""
    generator = torch.Generator().manual_seed(seed)
    low, high = (torch.tensor(x).view(torch.int32).item() for x in (least, most))
    bits = torch.randint(low, high + 1, (COUNT,), generator=generator)
    ends = torch.arange(low, high + 1, 1 << 23)
    edges = torch.cat([ends, ends + 1, ends + 0x7FFFFF, ends + 0x7FFFFE])
    bits[: len(edges)] = edges.clamp(max=high)
    return bits.to(torch.int32).view(torch.float32)


def both(function: ctypes._CFuncPtr, units: int, *operands: Tensor) -> tuple[Tensor, Tensor]:
    ours, theirs = torch.empty_like(operands[0]), torch.empty_like(operands[0])
    call(function, *operands, len(ours), units, ours, theirs)
    return ours, theirs


@pytest.mark.parametrize("units", [-2, -1, 0, 1, 2])
def test_roots(units: int, division: ctypes.CDLL) -> None:
    x = numbers(LEAST_ROOT, MOST_ROOT, 1)
    x[::1000] = 0.0
    x[1 : 2**18 : 2] = x[: 2**18 : 2].clamp(2.0**-40, 2.0**39).square()  # whose roots are exact, or halfway nearly so
    assert same_bits(*both(division.roots, units, x))


@pytest.mark.parametrize("units", [-1, 0, 1])
def test_quotients(units: int, division: ctypes.CDLL) -> None:
    a, b = numbers(LEAST_DIVIDEND, MOST_DIVIDEND, 2), numbers(2.0**-60, 2.0**41, 3)
    a[::2] *= -1
    a[::1000], a[1::1000] = 0.0, -0.0
    mantissas = numbers(1.0, 2.0, 4)
    for divisor in (b, mantissas):
        # Of the mantissa of all ones the reciprocal must be right: Markstein's exception, of nvcc's own sequence too.
        ones = divisor.view(torch.int32) & 0x7FFFFF == 0x7FFFFF
        divisor[ones & (units != 0)] = 1.0
    assert same_bits(*both(division.quotients, units, a, b))
    assert same_bits(*both(division.quotients, units, numbers(1.0, 2.0, 5), mantissas))


def test_a_worse_approximation_is_noticed(division: ctypes.CDLL) -> None:
    """The negative control."""
    x, a = numbers(1.0, 4.0, 1), numbers(1.0, 2.0, 2)
    assert not same_bits(*both(division.roots, 4000, x))
    assert not same_bits(*both(division.quotients, 60_000, a, numbers(1.0, 2.0, 3)))


def test_what_is_ordinary(division: ctypes.CDLL) -> None:
    """Zeros, and everything between the ends; no NaN, infinity or subnormal in either place."""

    def found(dividend: Tensor, square: Tensor) -> list[bool]:
        result = torch.empty(len(dividend), dtype=torch.bool)
        call(division.ordinary, dividend, square, len(dividend), result)
        return result.tolist()

    one = torch.tensor([1.0])
    fine = torch.tensor([0.0, -0.0, LEAST_DIVIDEND, -LEAST_DIVIDEND, MOST_DIVIDEND, -MOST_DIVIDEND])
    nan, inf = float("nan"), float("inf")
    rare = torch.tensor([nan, -nan, inf, -inf, 1e-45, -1e-45, 2.0**-71, -(2.0**-71), 2.0**61, -(2.0**61)])
    assert all(found(fine, one.expand(len(fine)).contiguous()))
    assert not any(found(rare, one.expand(len(rare)).contiguous()))
    fine = torch.tensor([0.0, LEAST_ROOT, MOST_ROOT])
    rare = torch.tensor([nan, -nan, inf, 1e-45, 2.0**-102, 2.0**81, -1.0])
    assert all(found(one.expand(len(fine)).contiguous(), fine))
    assert not any(found(one.expand(len(rare)).contiguous(), rare))
