"""Steps that leave zeros in the gradients, and scalars that skip the step: the same bits from every backend."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from torch import Tensor

from radam_fused.backends.ops import OPERATORS
from radam_fused.numerics.layout import layout_hash, segment_starts
from radam_fused.numerics.scalars import NO_PARAM_UPDATE, SKIP_STEP, compute_scalars
from radam_fused.options import GROUP_DEFAULTS
from tests.kernels.test_bits import PAIRS, SHORT, expanded
from tests.support.cuda_host import Geometry, host_step, same_layout
from tests.support.helpers import LAYOUTS, filled, gradients, one_ulp_up, same_bits

PAIR = pytest.mark.parametrize(("dtype", "grad_dtype"), PAIRS, ids=[f"{SHORT[p]}-grad_{SHORT[g]}" for p, g in PAIRS])
ZERO = pytest.mark.parametrize("zero_grads", [False, True], ids=["kept", "zeroed"])
LONG = "size_50021"
"""Long enough for several threads; one will do."""
NAMES = [name for name in LAYOUTS if name != LONG]
GEOMETRIES = {
    "one_block": Geometry(),
    "seven_blocks_backwards": Geometry(blocks=7, backwards=True),
    "narrow_blocks_in_tables": Geometry(blocks=61, threads=32, in_tables=True),
}


def rows_of_every_kind() -> Tensor:
    """Momentum, adaptive, hold and skip."""
    rows = [compute_scalars(GROUP_DEFAULTS, 3), compute_scalars({**GROUP_DEFAULTS, "weight_decay": 0.1}, 9)]
    rows.append(rows[1]._replace(update_rule=NO_PARAM_UPDATE))
    rows.append(rows[1]._replace(update_rule=SKIP_STEP, step_size=float("nan"), grad_scale_factor=float("nan")))
    return torch.tensor(rows, dtype=torch.float64)


class Problem:
    """Every layout with every kind of row, and gradients in its parameter's order, row-major, expanded or with gaps."""

    def __init__(self, dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
        self.params, self.grads, self.scalar_index = [], [], []
        for row in range(4):
            names = NAMES if row != 1 else [*NAMES, LONG]
            params = [filled(name, dtype, 10 * row + k) for k, name in enumerate(names)]
            plain = gradients([p.shape for p in params], grad_dtype, row)
            for k, (p, g) in enumerate(zip(params, plain, strict=True)):
                as_param = torch.empty_like(p, dtype=grad_dtype).copy_(g)
                gaps = torch.stack([g, torch.ones_like(g)], dim=-1)[..., 0]
                self.grads.append((as_param, g, expanded(g), gaps)[(k + row) % 4])
            self.params += params
            self.scalar_index += [row] * len(params)
        self.starts, length = segment_starts([p.numel() for p in self.params])
        moments = torch.float64 if dtype == torch.float64 else torch.float32
        self.moments = [torch.linspace(0.0, 1.0, length, dtype=moments) for _ in range(2)]

    def after(self, step: Any, zero_grads: bool, rows: Tensor | None = None) -> dict[str, list[Tensor]]:
        """Copies of all tensors after a step; of gradients with gaps, the gaps too."""
        params, grads = [[same_layout(t) for t in tensors] for tensors in (self.params, self.grads)]
        moments = [m.clone() for m in self.moments]
        table = [(at, layout_hash(p.shape, p.stride())) for at, p in zip(self.starts, params, strict=True)]
        rows = rows_of_every_kind() if rows is None else rows
        step(params, grads, *moments, torch.tensor(table), torch.tensor(self.scalar_index), rows, zero_grads)
        stored = [torch.empty(0, dtype=g.dtype).set_(g.untyped_storage()) for g in grads]
        return {"params": params, "exp_avg": moments[:1], "exp_avg_sq": moments[1:], "grads": grads, "memory": stored}


def assert_same(ours: dict[str, list[Tensor]], theirs: dict[str, list[Tensor]]) -> None:
    for name in theirs:
        for k, (a, b) in enumerate(zip(ours[name], theirs[name], strict=True)):
            assert same_bits(a, b), f"{name}[{k}]"


@pytest.fixture(scope="module")
def known() -> dict[tuple, dict[str, list[Tensor]]]:
    return {}


def expected(known: dict, dtype: torch.dtype, grad_dtype: torch.dtype, zero_grads: bool) -> dict[str, list[Tensor]]:
    key = dtype, grad_dtype, zero_grads
    if key not in known:
        known[key] = Problem(dtype, grad_dtype).after(OPERATORS["reference"].step, zero_grads)
    return known[key]


@pytest.mark.sampled
@ZERO
@PAIR
def test_equals_reference(
    dtype: torch.dtype, grad_dtype: torch.dtype, zero_grads: bool, backend: str, known: dict
) -> None:
    ours = Problem(dtype, grad_dtype).after(OPERATORS[backend].step, zero_grads)
    assert_same(ours, expected(known, dtype, grad_dtype, zero_grads))


@pytest.mark.parametrize("threads", [1, 2, 7])
@ZERO
def test_any_number_of_threads(zero_grads: bool, threads: int, known: dict) -> None:
    torch.set_num_threads(threads)
    pair = torch.bfloat16, torch.float32
    assert_same(Problem(*pair).after(OPERATORS["cpu"].step, zero_grads), expected(known, *pair, zero_grads))


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=list(GEOMETRIES))
@ZERO
@PAIR
def test_body_of_the_cuda_kernel(
    host_kernels: ctypes.CDLL,
    dtype: torch.dtype,
    grad_dtype: torch.dtype,
    zero_grads: bool,
    geometry: Geometry,
    known: dict,
) -> None:
    ours = Problem(dtype, grad_dtype).after(host_step(host_kernels, geometry), zero_grads)
    assert_same(ours, expected(known, dtype, grad_dtype, zero_grads))


def test_a_skipped_thread_of_the_kernel_is_noticed(host_kernels: ctypes.CDLL, known: dict) -> None:
    """The negative control: one thread of 896 does not run, and leaves what it should have cleared."""
    pair = torch.float32, torch.float32
    ours = Problem(*pair).after(host_step(host_kernels, Geometry(blocks=7, skipped=128 * 3 + 5)), zero_grads=True)
    theirs = expected(known, *pair, True)
    for name in ("params", "grads"):
        with pytest.raises(AssertionError, match=name):
            assert_same({name: ours[name]}, {name: theirs[name]})


@pytest.mark.sampled
@PAIR
def test_zeros_are_positive_and_nothing_else_changes(dtype: torch.dtype, grad_dtype: torch.dtype, backend: str) -> None:
    """With zero_grads every element of every gradient is +0, those in the gaps stay; all else is as without."""
    problem = Problem(dtype, grad_dtype)
    kept, zeroed = (problem.after(OPERATORS[backend].step, zero_grads) for zero_grads in (False, True))
    assert_same({"grads": kept["grads"]}, {"grads": problem.grads})
    assert all(same_bits(g, torch.zeros_like(g)) for g in zeroed["grads"])
    assert any(memory.any() for memory in zeroed["memory"])
    names = ("params", "exp_avg", "exp_avg_sq")
    assert_same({n: zeroed[n] for n in names}, {n: kept[n] for n in names})
    one_ulp_up(zeroed["grads"][NAMES.index("size_4097")], 4096)
    with pytest.raises(AssertionError):  # the negative control
        assert all(same_bits(g, torch.zeros_like(g)) for g in zeroed["grads"])


@pytest.mark.sampled
@ZERO
@PAIR
def test_a_skipped_step_leaves_all_but_the_gradients(
    dtype: torch.dtype, grad_dtype: torch.dtype, zero_grads: bool, backend: str
) -> None:
    problem = Problem(dtype, grad_dtype)
    skipping = rows_of_every_kind()[3:].repeat(4, 1)
    after = problem.after(OPERATORS[backend].step, zero_grads, skipping)
    before = {"params": problem.params, "exp_avg": problem.moments[:1], "exp_avg_sq": problem.moments[1:]}
    assert_same(after, before)
    assert all(
        same_bits(g, torch.zeros_like(g) if zero_grads else was)
        for g, was in zip(after["grads"], problem.grads, strict=True)
    )
    taken = problem.after(OPERATORS[backend].step, zero_grads, rows_of_every_kind()[1:2].repeat(4, 1))
    with pytest.raises(AssertionError, match="params"):  # the negative control: a step that is not skipped
        assert_same(taken, before)


def test_opcheck(backend: str) -> None:
    names = ["size_257", "transposed", "misaligned"]
    params = [filled(name, torch.float32, k) for k, name in enumerate(names)]
    starts, length = segment_starts([p.numel() for p in params])
    table = [(at, layout_hash(p.shape, p.stride())) for at, p in zip(starts, params, strict=True)]
    moments = torch.zeros(length), torch.zeros(length)
    arguments = (params, [torch.ones_like(p) for p in params], *moments, torch.tensor(table), torch.tensor([0, 1, 3]))
    result = torch.library.opcheck(OPERATORS[backend].step, (*arguments, rows_of_every_kind(), True))
    assert set(result.values()) == {"SUCCESS"}
