"""The AVX-512 headers match the scalar ones bit for bit, over every value that could show a difference."""

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

from radam_fused import _C
from tests.support.cuda_host import NUMERIC_FLAGS
from tests.support.paths import ROOT

HERE = Path(__file__).parent
ALL_16_BITS = torch.arange(-(2**15), 2**15).to(torch.int16)
NARROWED, AS_PARAMETER, STOCHASTIC = range(3)
BFLOAT = pytest.mark.parametrize("bfloat", [False, True], ids=["fp16", "bf16"])

pytestmark = pytest.mark.skipif(_C.cpu_capability() != "avx512", reason="runs AVX-512")


@pytest.fixture(scope="module")
def lanes(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shlex.split(os.environ.get("CXX", "")) or [next(filter(shutil.which, ("c++", "g++", "clang++")))]
    library = tmp_path_factory.mktemp("lanes") / "lanes.so"
    flags = ("-std=c++17", "-O1", "-shared", "-fPIC", *NUMERIC_FLAGS, f"-I{ROOT / 'csrc'}")
    subprocess.run([*compiler, *flags, str(HERE / "avx512.cpp"), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def call(function: ctypes._CFuncPtr, *arguments: int | Tensor) -> None:
    function(*(ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else ctypes.c_int64(a) for a in arguments))


def every_exponent() -> Tensor:
    """float32 of every exponent and sign; of those that float16 has subnormals for, with many mantissas."""
    edges = [0, 1, 0x0FFF, 0x1000, 0x1001, 0x1FFF, 0x2000, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x10000, 0x18000]
    edges += [0x7FDFFF, 0x7FE000, 0x7FEFFF, 0x7FF000, 0x7F7FFF, 0x7F8000, 0x7FFFFF]
    generator = torch.Generator().manual_seed(0)
    mantissas = torch.cat([torch.tensor(edges), torch.randint(2**23, (107,), generator=generator)])
    magnitudes = ((torch.arange(256) << 23)[:, None] | mantissas).reshape(-1)
    return torch.cat([magnitudes, magnitudes | 0x80000000]).to(torch.uint32).view(torch.float32)


def stored(lanes: ctypes.CDLL, bfloat: bool, way: int, x: Tensor, random_bits: Tensor) -> tuple[Tensor, Tensor]:
    """As 16 bits, in AVX-512 and one by one, in which all NaN are one."""
    both = torch.full((2, len(x)), -1, dtype=torch.int16)
    call(lanes.lanes_store, bfloat, way, x, random_bits, len(x), both[0], both[1])
    nan = both.view(torch.bfloat16 if bfloat else torch.float16).isnan()
    return tuple(both.masked_fill(nan, -1))  # type: ignore[return-value]


@BFLOAT
@pytest.mark.parametrize("way", [NARROWED, AS_PARAMETER], ids=["narrowed", "as_parameter"])
def test_rounded_to_nearest(lanes: ctypes.CDLL, bfloat: bool, way: int) -> None:
    x = every_exponent()
    assert torch.equal(*stored(lanes, bfloat, way, x, torch.zeros(len(x), dtype=torch.int16)))


@BFLOAT
@pytest.mark.parametrize("bits", [0, 1, 7, 8, 0x5555, 0x7FFF, -0x8000, -8, -1])
def test_rounded_stochastically(lanes: ctypes.CDLL, bfloat: bool, bits: int) -> None:
    x = every_exponent()
    random_bits = torch.full((len(x),), bits, dtype=torch.int16)
    ours, theirs = stored(lanes, bfloat, STOCHASTIC, x, random_bits)
    assert torch.equal(ours, theirs)
    # The negative control: another bit of the random_bits shows.
    assert not torch.equal(ours, stored(lanes, bfloat, STOCHASTIC, x, random_bits ^ 0x4000)[1])


@BFLOAT
def test_every_value_is_widened(lanes: ctypes.CDLL, bfloat: bool) -> None:
    both = torch.zeros(2, 2**16)
    call(lanes.lanes_load, bfloat, ALL_16_BITS, 2**16, both[0], both[1])
    number = ~both[1].isnan()
    assert torch.equal(both[0].isnan(), ~number)
    assert torch.equal(*both.view(torch.int32)[:, number])
    other = torch.zeros(2, 2**16)
    call(lanes.lanes_load, not bfloat, ALL_16_BITS, 2**16, other[0], other[1])
    assert not torch.equal(other[0][number], both[1][number])  # the negative control: of the other format


def test_split_and_joined(lanes: ctypes.CDLL) -> None:
    x = every_exponent()
    ours, theirs = torch.zeros(2, 2, len(x), dtype=torch.int16)
    call(lanes.lanes_split, x, len(x), ours, theirs)
    assert torch.equal(ours, theirs)
    joined = torch.zeros(2, len(x))
    call(lanes.lanes_join, ours[0], ours[1], len(x), joined[0], joined[1])
    assert torch.equal(*joined.view(torch.int32))
    number = ~x.isnan()
    assert torch.equal(joined[0][number].view(torch.int32), x[number].view(torch.int32))
    call(lanes.lanes_join, ours[0], ours[1] ^ 1, len(x), joined[0], joined[1])
    assert not torch.equal(joined[0][number], x[number])  # the negative control: another low bit


@pytest.mark.parametrize("bits", [0, 1, 0x5555, -0x8000, -1])
def test_float16_moments(lanes: ctypes.CDLL, bits: int) -> None:
    """Roots of every exponent, and first moments that are 2^-40 to 2^40 times as large, infinite, or NaN."""
    root = every_exponent()
    generator = torch.Generator().manual_seed(1)
    m = root * 2.0 ** torch.randint(-40, 41, root.shape, generator=generator)
    m = torch.where(torch.rand(root.shape, generator=generator) < 0.1, root.roll(12345), m)
    random_bits = torch.full((len(root),), bits, dtype=torch.int16)
    both = torch.full((2, 2 * len(root)), -1, dtype=torch.int16)
    call(lanes.lanes_halves, m, root, random_bits, len(root), both[0], both[1])
    ours, theirs = both.masked_fill(both.view(torch.float16).isnan(), -1)
    assert torch.equal(ours, theirs)
    call(lanes.lanes_halves, m, root * 1.01, random_bits, len(root), both[0], both[1])
    assert not torch.equal(both[0], theirs)  # the negative control: other roots


@pytest.mark.parametrize("count", [32, 64, 96, 256, 1024])
@pytest.mark.parametrize("rng_offset", [0, 1, 7, 8, 1001, 2**35 - 40, 2**40 + 3])
def test_random_bits(lanes: ctypes.CDLL, rng_offset: int, count: int) -> None:
    """Wherever a run begins, also within a group, and where the lower half of the groups' numbers overflows."""
    both = torch.zeros(2, count, dtype=torch.int16)
    call(lanes.lanes_random_bits, rng_offset, count, 1, 12345, 2**32 - 2, both[0], both[1])
    assert torch.equal(*both)
    other = torch.zeros_like(both)
    call(lanes.lanes_random_bits, rng_offset + 1, count, 1, 12345, 2**32 - 2, other[0], other[1])
    assert not torch.equal(both[0], other[0])  # the negative control: the next place's
    assert torch.equal(both[0][1:], other[0][:-1])
