"""The CUDA kernel's body, run on the host block by block and thread by thread: the same bits as ``reference``.

What the compilers make of it is `make cuda-check`'s business, and running it on a GPU the tests' in gpu.
"""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from radam_fused import FusedRAdam, available_backends
from radam_fused.backends import ops
from radam_fused.backends.operator_args import StepArgs
from radam_fused.backends.reference import step as reference
from radam_fused.numerics.layout import layout_hash
from radam_fused.numerics.scalars import compute_scalars
from radam_fused.options import GROUP_DEFAULTS
from tests.kernels.test_bits import PAIRS, SHORT, assert_same, train
from tests.support.cuda_host import Geometry, host_step, same_layout
from tests.support.helpers import filled, gradients, one_ulp_up, same_bits
from tests.support.paths import ROOT

STEPS = 9
"""Unrectified, rectified, with gradients missing, strided and expanded: see `train`."""
TILE = 1024

GEOMETRIES = {
    "one_block": Geometry(),
    "seven_blocks_backwards": Geometry(blocks=7, backwards=True),
    "narrow_blocks_in_tables": Geometry(blocks=61, threads=32, in_tables=True),
    "more_blocks_than_tiles": Geometry(blocks=1009),
}

Trained = tuple[list[Tensor], list[Tensor]]


@pytest.fixture(scope="module")
def expected() -> dict[tuple[torch.dtype, torch.dtype], Trained]:
    return {}


def trained_on_the_host(
    host_kernels: ctypes.CDLL,
    geometry: Geometry,
    pair: tuple[torch.dtype, torch.dtype],
    monkeypatch: pytest.MonkeyPatch,
) -> Trained:
    """The results of test_bits.train with the CUDA kernel, run on the host, in place of the ``cpu`` backend."""
    monkeypatch.setitem(ops.OPERATORS, "cpu", ops.OPERATORS["cpu"]._replace(step=host_step(host_kernels, geometry)))
    return train("cpu", *pair, steps=STEPS)


def by_reference(expected: dict, pair: tuple[torch.dtype, torch.dtype]) -> Trained:
    if pair not in expected:
        expected[pair] = train("reference", *pair, steps=STEPS)
    return expected[pair]


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=list(GEOMETRIES))
@pytest.mark.parametrize("pair", PAIRS, ids=[f"{SHORT[p]}-grad_{SHORT[g]}" for p, g in PAIRS])
def test_kernel_equals_reference(
    host_kernels: ctypes.CDLL,
    pair: tuple[torch.dtype, torch.dtype],
    geometry: Geometry,
    expected: dict,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert_same(trained_on_the_host(host_kernels, geometry, pair, monkeypatch), by_reference(expected, pair))


@pytest.mark.parametrize(
    "thread",
    [0, 127, 128 * 6 + 31],
    ids=["first_of_the_first_block", "last_of_the_first_block", "one_of_the_last_block"],
)
def test_a_skipped_thread_is_noticed(
    host_kernels: ctypes.CDLL, thread: int, expected: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: one thread of 896 does not run, in one launch after another."""
    pair = (torch.float32, torch.float32)
    geometry = replace(GEOMETRIES["seven_blocks_backwards"], skipped=thread)
    with pytest.raises(AssertionError, match=r"parameter|exp_avg"):
        assert_same(trained_on_the_host(host_kernels, geometry, pair, monkeypatch), by_reference(expected, pair))


def test_one_ulp_is_noticed(host_kernels: ctypes.CDLL, expected: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: one element of one moment is one ulp off."""
    pair = (torch.bfloat16, torch.bfloat16)
    ours = trained_on_the_host(host_kernels, Geometry(), pair, monkeypatch)
    assert_same(ours, by_reference(expected, pair))
    longest = max(ours[1], key=Tensor.numel)
    one_ulp_up(longest, longest.numel() - 1)
    with pytest.raises(AssertionError, match="exp_avg of size_50021"):
        assert_same(ours, by_reference(expected, pair))


def rows(count: int) -> Tensor:
    return torch.tensor(
        [compute_scalars({**GROUP_DEFAULTS, "lr": 0.01 * (k + 1)}, 9) for k in range(count)], dtype=torch.float64
    )


def one_step(step, params: list[Tensor], grads: list[Tensor], scalar_index: list[int], table: Tensor) -> list[Tensor]:
    """Copies of the parameters after a step, and the moments."""
    starts, end = [], 0
    for p in params:
        starts.append(end)
        end += -(-p.numel() // 64) * 64
    moments = [torch.linspace(0.0, 1.0, end) for _ in range(2)]
    params = [same_layout(p) for p in params]
    layouts = [layout_hash(p.shape, p.stride()) for p in params]
    step(params, grads, *moments, torch.tensor([*zip(starts, layouts, strict=True)]), torch.tensor(scalar_index), table)
    return [*params, *moments]


def assert_same_step(host_kernels: ctypes.CDLL, geometry: Geometry, *arguments) -> None:
    ours = one_step(host_step(host_kernels, geometry), *arguments)
    theirs = one_step(ops.OPERATORS["reference"].step, *arguments)
    assert all(same_bits(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not same_bits(ours[0], arguments[0][0])


def test_gradients_of_several_dtypes_in_one_bucket(host_kernels: ctypes.CDLL) -> None:
    names = ["size_257", "transposed", "misaligned", "strided", "size_4097", "matrix"]
    params = [filled(name, torch.float32, k) for k, name in enumerate(names)]
    dtypes = (torch.bfloat16, torch.float32, torch.float16)
    grads = [gradients([p.shape], dtypes[k % 3], k)[0] for k, p in enumerate(params)]
    assert_same_step(host_kernels, Geometry(blocks=5), params, grads, [k % 2 for k in range(len(params))], rows(2))


@pytest.mark.parametrize(
    ("segments", "groups"),
    [(300, 40), (3000, 40), (5000, 1), (50, 1000), (5000, 1000)],
    ids=["4_KB", "32_KB", "gradients_in_a_table", "rows_in_a_table", "both_in_tables"],
)
def test_any_number_of_segments_and_rows(host_kernels: ctypes.CDLL, segments: int, groups: int) -> None:
    """By value while they fit 32 KB, in tables beyond; which of both, the kernel sees by the launch's arguments."""
    params = list(torch.randn(segments, 3, generator=torch.Generator().manual_seed(0)).unbind())
    grads = gradients([p.shape for p in params], torch.float32, 1)
    scalar_index = [(7 * k) % groups for k in range(segments)]
    assert_same_step(host_kernels, Geometry(blocks=13), params, grads, scalar_index, rows(groups))


def lazily(length: int, dtype: torch.dtype) -> Tensor:
    """Zeros that take memory only where they are touched."""
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE, which Python names from 3.11 on
    return torch.frombuffer(mmap.mmap(-1, length * dtype.itemsize, flags=private), dtype=dtype)


def test_more_than_2_to_the_31_elements(host_kernels: ctypes.CDLL) -> None:
    """The tiles around and behind element 2^31 of a segment, and a segment that starts there."""
    long, short = 2**31 + 5 * TILE + 37, 3000
    start = -(-long // 256) * 256
    params = [lazily(long, torch.bfloat16), torch.ones(short, dtype=torch.bfloat16)]
    grads = [lazily(long, torch.bfloat16), torch.full((short,), 0.5, dtype=torch.bfloat16)]
    moments = [lazily(start + short, torch.float32) for _ in range(2)]
    grads[0][-6 * TILE :] = 0.25
    table = rows(2)[1:]
    tiles = -(-long // TILE) + 3
    blocks = range(tiles - 9, tiles)  # a block a tile: the last six of the long segment, those of the short one
    layouts = [(at, layout_hash(p.shape, p.stride())) for at, p in zip((0, start), params, strict=True)]
    for block in blocks:
        geometry = Geometry(blocks=tiles, only_block=block)
        host_step(host_kernels, geometry)(params, grads, *moments, torch.tensor(layouts), torch.tensor([0, 0]), table)

    touched = slice((tiles - 9) * TILE, long)
    for k, part in ((0, touched), (1, slice(0, short))):
        p = torch.full((part.stop - part.start,), float(k), dtype=torch.bfloat16)
        m, v = torch.zeros(p.numel()), torch.zeros(p.numel())
        where = torch.tensor([(0, layout_hash(p.shape, p.stride()))])
        reference.step(StepArgs([p], [grads[k][part].clone()], m, v, where, torch.tensor([0]), table))
        at = slice(layouts[k][0] + part.start, layouts[k][0] + part.stop)
        assert same_bits(params[k][part], p)
        assert same_bits(moments[0][at], m)
        assert same_bits(moments[1][at], v)
        assert m.count_nonzero() > 0
    assert not params[0][touched.start - TILE : touched.start].any()


@pytest.mark.parametrize("bits", [32, 64])
def test_positions_of_strided_elements(host_kernels: ctypes.CDLL, bits: int) -> None:
    """Where a strided tensor's elements are, in 32-bit arithmetic and, for more than 2^31 of them, in 64-bit."""
    sizes = (5, 3, 7) if bits == 32 else (50_021, 3, 70_001)
    param_strides, grad_strides = (40, 9, 1), (2, 0, 300_000)
    strides = [3]
    for size, p, g in reversed([*zip(sizes, param_strides, grad_strides, strict=True)]):
        strides += [size, p, g]
    table, found = (ctypes.c_int64 * len(strides))(*strides), (ctypes.c_int64 * 2)()
    count = sizes[0] * sizes[1] * sizes[2]
    for position in {*range(0, count, count // 97), count - 1}:
        host_kernels.radam_fused_locate(table, ctypes.c_int64(position), ctypes.c_int64(bits), found)
        index = [int(i) for i in torch.unravel_index(torch.tensor(position), sizes)]
        assert found[0] == sum(i * s for i, s in zip(index, param_strides, strict=True))
        assert found[1] == sum(i * s for i, s in zip(index, grad_strides, strict=True))


def test_backend_cuda_is_for_gpus() -> None:
    if available_backends()["cuda"] is not None:
        with pytest.raises(RuntimeError, match="backend = 'cuda' cannot run here: "):
            FusedRAdam([torch.zeros(3)], backend="cuda")
    else:
        with pytest.raises(ValueError, match="does not serve parameters on cpu"):
            FusedRAdam([torch.zeros(3)], backend="cuda")


def test_the_tile_loop_is_in_one_place() -> None:
    """The kernel calls what these tests run, and does nothing besides."""
    kernel = (ROOT / "csrc" / "cuda" / "step_kernel.cuh").read_text()
    body = kernel[kernel.index("__global__") :]
    assert body.count(";") == 1
    assert "step_tiles<kThreads, P, G>" in body
