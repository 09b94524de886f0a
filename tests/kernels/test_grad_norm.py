"""grad_norm: the same 1,024 partial sums from every backend, bit for bit."""

from __future__ import annotations

import ctypes
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from radam_fused.backends.ops import OPERATORS
from radam_fused.numerics.layout import NORM_RUN, PARTIAL_SUMS
from tests.kernels.test_bits import SHORT, SPECIAL, expanded
from tests.support.cuda_host import Geometry, host_squares
from tests.support.helpers import LAYOUTS, filled, misaligned, noise, one_ulp_up, same_bits
from tests.support.paths import ROOT

SIZES = (0, 1, 255, 1023, 1024, 1025, 100_003)
TILE = 1024
DTYPE = pytest.mark.parametrize("dtype", SHORT, ids=list(SHORT.values()))


def values(length: int, dtype: torch.dtype) -> Tensor:
    """`noise`, repeated where that is not enough."""
    return noise(500_000).repeat(-(-length // 500_000))[:length].to(dtype)


def unaligned(dtype: torch.dtype) -> Tensor:
    """Several tiles, the first element between two vector accesses."""
    return misaligned(5 * TILE + 7, dtype).copy_(values(5 * TILE + 7, dtype))


CASES: dict[str, Callable[[torch.dtype], list[Tensor]]] = {
    **{f"size_{n}": lambda dtype, n=n: [values(n, dtype)] for n in SIZES},
    "all_sizes": lambda dtype: [values(n, dtype) for n in SIZES],
    "layouts": lambda dtype: [filled(name, dtype, seed) for seed, name in enumerate(LAYOUTS)],
    "expanded": lambda dtype: [expanded(values(3000, dtype)), values(6000, dtype)[:3].reshape(3, 1).expand(3, 700)],
    "misaligned": lambda dtype: [unaligned(dtype), values(100, dtype)],
    "strided": lambda dtype: [values(2 * 9001, dtype)[::2], values(60 * 70 * 2, dtype).view(60, 70, 2)[..., 1].t()],
    "channels_last": lambda dtype: [
        values(3 * 40 * 9 * 11, dtype).view(3, 40, 9, 11).to(memory_format=torch.channels_last)
    ],
    "many_small": lambda dtype: list(values(1100 * 3, dtype).view(1100, 3).unbind()),
    "more_tiles_than_sums": lambda dtype: [values(1_100_003, dtype), values(77, dtype)],
}
CASE = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


@pytest.fixture(scope="module")
def known() -> dict[tuple, Tensor]:
    return {}


def expected(known: dict, case: Callable, dtype: torch.dtype) -> Tensor:
    """What ``reference`` gives, computed once."""
    if (case, dtype) not in known:
        known[case, dtype] = OPERATORS["reference"].grad_norm(case(dtype))
    return known[case, dtype]


@pytest.mark.sampled
@DTYPE
@CASE
def test_equals_reference(case: Callable, dtype: torch.dtype, backend: str, known: dict) -> None:
    found = OPERATORS[backend].grad_norm(case(dtype))
    assert found.shape == (1, PARTIAL_SUMS)
    assert same_bits(found, expected(known, case, dtype))


@pytest.mark.sampled
@DTYPE
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_any_number_of_threads(threads: int, dtype: torch.dtype, known: dict) -> None:
    torch.set_num_threads(threads)
    for case in CASES.values():
        assert same_bits(OPERATORS["cpu"].grad_norm(case(dtype)), expected(known, case, dtype))


@pytest.mark.parametrize("capability", ["baseline", pytest.param("avx2", marks=pytest.mark.long)])
def test_instruction_sets_agree(capability: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: dict) -> None:
    script = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); import radam_fused._C as C; "
        "from tests.kernels import test_grad_norm as t; "
        "out = {(n, str(d)): t.OPERATORS['cpu'].grad_norm(c(d)) for n, c in t.CASES.items() for d in t.SHORT}; "
        "torch.save((C.cpu_capability(), out), sys.argv[2])"
    )
    monkeypatch.setenv("RADAM_FUSED_CPU_ISA", capability)
    path = tmp_path / "out.pt"
    subprocess.run([sys.executable, "-c", script, str(ROOT), str(path)], check=True)
    used, out = torch.load(path)
    assert used == capability
    for name, case in CASES.items():
        for dtype in SHORT:
            assert same_bits(out[name, str(dtype)], expected(known, case, dtype))


@pytest.mark.sampled
@pytest.mark.parametrize(
    "geometry",
    [Geometry(), Geometry(blocks=7, backwards=True), Geometry(blocks=1009, in_tables=True), Geometry(blocks=1024)],
    ids=["one_block", "seven_blocks_backwards", "addresses_in_a_table", "a_block_a_sum"],
)
@DTYPE
def test_body_of_the_cuda_kernel(
    host_kernels: ctypes.CDLL, dtype: torch.dtype, geometry: Geometry, known: dict
) -> None:
    for case in CASES.values():
        assert same_bits(host_squares(host_kernels, geometry)(case(dtype)), expected(known, case, dtype))


@pytest.mark.sampled
@DTYPE
@pytest.mark.parametrize("block", [0, 3, 6])
def test_a_skipped_thread_of_the_kernel_is_noticed(
    host_kernels: ctypes.CDLL, block: int, dtype: torch.dtype, known: dict
) -> None:
    """The negative control: of seven blocks of 128 threads one thread does not run."""
    case = CASES["more_tiles_than_sums"]
    geometry = Geometry(blocks=7)
    assert same_bits(host_squares(host_kernels, geometry)(case(dtype)), expected(known, case, dtype))
    found = host_squares(host_kernels, replace(geometry, skipped=128 * block + 77))(case(dtype))
    wrong = (found != expected(known, case, dtype))[0].nonzero().flatten()
    assert wrong.numel() > 0
    assert all(int(sum_) % 7 == block for sum_ in wrong)


@pytest.mark.sampled
@pytest.mark.parametrize("where", [0, 700_000, 1_100_000])
def test_one_ulp_is_noticed(backend: str, where: int, known: dict) -> None:
    """The negative control: one element one unit in the last place up, and its partial sum is another."""
    case = CASES["more_tiles_than_sums"]
    grads = case(torch.float64)
    grads[0][where] = 1e6  # large among the others, so that its last place counts
    before = OPERATORS[backend].grad_norm(grads)
    one_ulp_up(grads[0], where)
    after = OPERATORS[backend].grad_norm(grads)
    tiles = -(-1_100_003 // TILE) + 1
    changed = (before != after)[0].nonzero().flatten().tolist()
    assert changed == [s for s in range(1024) if s * tiles // 1024 <= where // TILE < (s + 1) * tiles // 1024]


@pytest.mark.sampled
@DTYPE
def test_the_sum_is_the_sum(dtype: torch.dtype, backend: str) -> None:
    """Against torch's own, up to rounding; and adding in another order rounds otherwise."""
    grads = CASES["layouts"](dtype)
    plain = sum(g.double().square().sum() for g in grads)
    total = OPERATORS[backend].grad_norm(grads).sum()
    torch.testing.assert_close(total, plain, rtol=1e-13 if dtype == torch.float64 else 1e-6, atol=0.0)
    one = values(100_003, torch.float64)
    assert not torch.equal(OPERATORS[backend].grad_norm([one]), OPERATORS[backend].grad_norm([one.flip(0)]))


RUNS = (17_300_007, 5_000, 900_000)
"""Lengths of gradients with more tiles to a sum than a run has, which end within a run."""


@DTYPE
def test_runs_of_tiles(host_kernels: ctypes.CDLL, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    grads = [values(n, dtype) for n in RUNS]
    reference = OPERATORS["reference"].grad_norm(grads)
    assert same_bits(OPERATORS["cpu"].grad_norm(grads), reference)
    assert same_bits(host_squares(host_kernels, Geometry(blocks=7))(grads), reference)
    monkeypatch.setattr("radam_fused.backends.reference.grad_norm.NORM_RUN", NORM_RUN + 1)
    other = OPERATORS["reference"].grad_norm(grads)  # the negative control
    assert same_bits(other, reference) == (dtype == torch.float64)


@pytest.mark.parametrize("value", [1.0, 1.1, 1.7, 1e-3, 3e-15, 2e13])
def test_the_error_is_below_a_millionth(value: float) -> None:
    """Equal elements, whose additions all round in the same direction."""
    grad = torch.full((RUNS[0],), value)
    exact = math.sqrt(grad[0].item() ** 2 * RUNS[0])
    assert OPERATORS["cpu"].grad_norm([grad]).sum().sqrt().item() == pytest.approx(exact, rel=1e-6, abs=0.0)


def test_float32_alone_would_err_more() -> None:
    """The negative control: the same additions, without runs."""
    value, count, total = torch.tensor(1.1), 2**14, torch.tensor(0.0)
    for _ in range(count):
        total += value * value
    assert total.sqrt().item() != pytest.approx(math.sqrt(value.item() ** 2 * count), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("value", [1e-25, 1e-18, 1e18, 1e20])
def test_the_range_is_that_of_the_norm_of_torch(value: float, dtype: torch.dtype, backend: str) -> None:
    grad = torch.full((5,), value, dtype=dtype)
    found = OPERATORS[backend].grad_norm([grad]).sum().sqrt().item()
    assert found == pytest.approx(torch.linalg.vector_norm(grad.float()).item(), rel=1e-6)
    assert (found == 0.0, found == math.inf) == (value < 1e-20, value > 1e19)


@pytest.mark.sampled
@DTYPE
def test_special_values(dtype: torch.dtype, backend: str) -> None:
    """Infinities, NaN, subnormals and values whose squares overflow or vanish, each in a partial sum of its own."""
    special = torch.tensor(SPECIAL, dtype=dtype)
    repeats = 20 if backend == "triton" else 200  # the interpreter takes its time for each tile
    grads = [g.contiguous() for g in special.repeat_interleave(TILE).view(len(SPECIAL), TILE).repeat(repeats, 1)]
    found = OPERATORS[backend].grad_norm(grads)
    assert same_bits(found, OPERATORS["reference"].grad_norm(grads))
    assert found.isnan().any()
    assert found.isinf().any()
    assert found.isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_every_16_bit_value(dtype: torch.dtype, backend: str) -> None:
    """All finite ones, neighbours in magnitude in one tile, so that each counts in its sum if its square is not 0."""
    patterns = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype)
    finite = patterns[patterns.isfinite()]
    assert finite.numel() > 63_000
    found = OPERATORS[backend].grad_norm([finite])
    assert same_bits(found, OPERATORS["reference"].grad_norm([finite]))
    tiles = torch.nn.functional.pad(finite.float().square(), (0, -finite.numel() % TILE)).view(-1, TILE)
    assert (found > 0).sum() == (tiles.sum(1) > 0).sum() > 20


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_opcheck(backend: str, dtype: torch.dtype) -> None:
    result = torch.library.opcheck(OPERATORS[backend].grad_norm, (CASES["all_sizes"](dtype),))
    assert set(result.values()) == {"SUCCESS"}
    assert len(result) == 4


@pytest.mark.parametrize(
    ("grads", "message"),
    [
        ([torch.zeros(3), torch.zeros(3, dtype=torch.float64)], "tensor 1 .*: all gradients must have the same dtype"),
        ([torch.zeros(3, dtype=torch.int64)], "must be float32, float64, float16 or bfloat16"),
        ([torch.zeros(3), torch.zeros(3, device="meta")], "device of the first"),
    ],
    ids=["dtypes", "integers", "devices"],
)
def test_native_refuses(grads: list[Tensor], message: str) -> None:
    native = torch.ops.radam_fused.grad_norm_native.default
    with pytest.raises((RuntimeError, NotImplementedError), match=message):
        native.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), grads)  # meta would take the fake
