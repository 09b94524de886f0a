"""The operator scalars gives the same bits as the host, from every backend."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from radam_fused.backends.ops import OPERATORS
from radam_fused.numerics.scalars import SKIP_STEP, GroupScalars, StepScalars, compute_scalars, group_scalars
from radam_fused.options import GROUP_DEFAULTS
from radam_fused.rectification import KINDS
from tests.support.cuda_host import Geometry, host_scalars
from tests.support.helpers import same_bits

BETA2 = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9995, 0.9999, 0.99999, 0.999999)
STEPS = (*range(1, 61), 1000, 2**24 - 2)
INF, NAN = float("inf"), float("nan")
KIND = pytest.mark.parametrize("kind", KINDS)


def groups_of(kind: str) -> list[dict[str, Any]]:
    """A group for every beta2, and every option among them."""
    return [
        {
            **GROUP_DEFAULTS,
            "lr": 0.003 * (k + 1),
            "betas": ((0.9, 0.0, 0.95)[k % 3], beta2),
            "eps": 1e-8 if k % 2 else 1e-3,
            "weight_decay": 0.1 * (k % 4),
            "decoupled_weight_decay": k % 2 == 0,
            "maximize": k % 3 == 0,
            "rectification": kind,
            "rho_threshold": (5.0, 4.0, 7.5)[k % 3],
            "degenerated_to_sgd": k % 4 != 1,
        }
        for k, beta2 in enumerate(BETA2)
    ]


class Problem:
    """Arguments of the scalars operator: every group at every step."""

    def __init__(self, kind: str = "first_order", **given: Any) -> None:
        self.groups = groups_of(kind)
        pairs = [(group, segment) for group in range(len(self.groups)) for segment in range(len(STEPS))]
        self.group_scalars = torch.tensor(
            [group_scalars(group, float(group["lr"])) for group in self.groups], dtype=torch.float64
        )
        self.pairs = torch.tensor(pairs)
        self.counted = torch.ones(len(STEPS))
        self.counted[::5] = 0.0
        self.taken = torch.tensor(STEPS, dtype=torch.float32) - 1.0
        self.given = {
            "lr": None,
            "partial_sums": None,
            "max_grad_norm": 0.0,
            "grad_scale": None,
            "found_inf": None,
            **given,
        }

    def arguments(self) -> tuple:
        return (
            self.group_scalars,
            self.pairs,
            self.counted,
            self.taken.clone(),
            self.taken.double(),
            *self.given.values(),
        )

    def made_by(self, operator: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Scalars, norm and step counts."""
        arguments = self.arguments()
        rows, norm = operator(*arguments)
        assert rows.shape == (len(self.pairs), len(StepScalars._fields))
        assert norm.shape == ()
        return rows, norm, arguments[3]


def assert_same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for name, a, b in zip(("rows", "norm", "steps"), ours, theirs, strict=True):
        if name == "rows":
            for column, x, y in zip(StepScalars._fields, a.unbind(1), b.unbind(1), strict=True):
                assert same_bits(x, y), f"column {column} of the rows"
        assert same_bits(a, b), name


def squares_with(norm: float) -> Tensor:
    """Three buckets' partial sums whose root is about the norm."""
    parts = torch.rand(3, 1024, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts *= norm * norm / parts.sum()
    return parts


def one(value: float) -> Tensor:
    return torch.tensor(value)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped": {"partial_sums": squares_with(7.0), "max_grad_norm": 0.7},
    "not_clipped": {"partial_sums": squares_with(0.5), "max_grad_norm": 0.7},
    "norm_inf": {"partial_sums": squares_with(1.0).index_fill(1, torch.tensor(5), INF), "max_grad_norm": 0.7},
    "norm_nan": {"partial_sums": squares_with(1.0).index_fill(1, torch.tensor(5), NAN), "max_grad_norm": 0.7},
    "norm_0": {"partial_sums": torch.zeros(1, 1024, dtype=torch.float64), "max_grad_norm": 0.7},
    "never_clipped": {"partial_sums": squares_with(3.0), "max_grad_norm": INF},
    "no_buckets": {"partial_sums": torch.zeros(0, 1024, dtype=torch.float64), "max_grad_norm": 1.0},
    "scaled": {"grad_scale": one(65536.0)},
    "scaled_oddly": {"grad_scale": one(3.7).reshape(1)},
    "scaled_and_clipped": {"partial_sums": squares_with(1e6), "max_grad_norm": 1.3, "grad_scale": one(1234.5)},
    "found_none": {"grad_scale": one(2.0), "found_inf": one(0.0)},
    "found_inf": {
        "partial_sums": squares_with(INF),
        "max_grad_norm": 1.0,
        "grad_scale": one(2.0),
        "found_inf": one(1.0),
    },
    "found_nan": {"found_inf": one(NAN).reshape(1)},
    "lr_float32": {"lr": torch.linspace(0.0, 0.3, len(BETA2))},
    "lr_float64": {"lr": torch.linspace(1e-5, 0.3, len(BETA2), dtype=torch.float64)},
    "lr_expanded": {"lr": torch.tensor(0.3).expand(len(BETA2))},
    "lr_strided": {"lr": torch.linspace(0.0, 0.3, 3 * len(BETA2), dtype=torch.float64)[1::3]},
}
OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))


@pytest.mark.sampled
@KIND
@OPTION
def test_equals_reference(options: dict, kind: str, backend: str) -> None:
    problem = Problem(kind, **options)
    assert_same(problem.made_by(OPERATORS[backend].scalars), problem.made_by(OPERATORS["reference"].scalars))


@pytest.mark.sampled
@pytest.mark.parametrize(
    "geometry",
    [Geometry(), Geometry(backwards=True), Geometry(threads=32), Geometry(threads=32, backwards=True)],
    ids=["1024_threads", "1024_threads_backwards", "32_threads", "32_threads_backwards"],
)
@KIND
def test_body_of_the_cuda_kernel(host_kernels: ctypes.CDLL, kind: str, geometry: Geometry) -> None:
    """Also backwards: were a step counted before another thread has read it, its row would be of a step later."""
    for options in OPTIONS.values():
        problem = Problem(kind, **options)
        assert_same(
            problem.made_by(host_scalars(host_kernels, geometry)), problem.made_by(OPERATORS["reference"].scalars)
        )


@pytest.mark.parametrize(("thread", "what"), [(0, "norm|column"), (33, "column"), (1023, "column grad_scale_factor")])
def test_a_skipped_thread_of_the_kernel_is_noticed(host_kernels: ctypes.CDLL, thread: int, what: str) -> None:
    """The negative control: one of 1,024 threads does not run."""
    problem = Problem(**OPTIONS["clipped"])
    ours = problem.made_by(host_scalars(host_kernels, Geometry(skipped=thread)))
    with pytest.raises(AssertionError, match=what):
        assert_same(ours, problem.made_by(OPERATORS["reference"].scalars))


@KIND
def test_equals_the_rows_of_the_host(kind: str, backend: str) -> None:
    """`compute_scalars` is another way to the same scalars, with Python's own arithmetic."""
    problem = Problem(kind)
    rows, norm, _ = problem.made_by(OPERATORS[backend].scalars)
    expected = [compute_scalars(group, t) for group, t in itertools.product(problem.groups, STEPS)]
    assert same_bits(rows, torch.tensor(expected, dtype=torch.float64))
    assert norm == 0.0
    wrong = [compute_scalars(group, t + 1) for group, t in itertools.product(problem.groups, STEPS)]
    assert not same_bits(rows, torch.tensor(wrong, dtype=torch.float64))  # the negative control


@pytest.mark.parametrize(("found", "skips"), [(None, False), (0.0, False), (1.0, True), (NAN, True)])
def test_a_skipped_step_is_not_counted(found: float | None, skips: bool, backend: str) -> None:
    problem = Problem(found_inf=None if found is None else one(found))
    rows, _, steps = problem.made_by(OPERATORS[backend].scalars)
    direction = rows[:, StepScalars._fields.index("update_rule")]
    assert bool((direction == SKIP_STEP).all()) == skips
    assert bool((direction == SKIP_STEP).any()) == skips
    assert same_bits(steps, problem.taken if skips else problem.taken + problem.counted)


def test_clips_as_torch_does(backend: str) -> None:
    """The factor of `torch.nn.utils.clip_grad_norm_`, in float64."""
    for norm in (0.1, 0.7, 5.0):
        squares = squares_with(norm)
        problem = Problem(partial_sums=squares, max_grad_norm=0.7)
        rows, found, _ = problem.made_by(OPERATORS[backend].scalars)
        torch.testing.assert_close(found, squares.sum().sqrt(), rtol=1e-14, atol=0.0)
        expected = torch.clamp(0.7 / (found + 1e-6), max=1.0)
        assert same_bits(
            rows[1, StepScalars._fields.index("grad_scale_factor")], -expected
        )  # the first group maximizes
        assert same_bits(rows[-1, StepScalars._fields.index("grad_scale_factor")], expected)


def clip_problems(count: int = 48) -> list[Problem]:
    """One row per case: random norms, limits and scales of many magnitudes."""
    generator = torch.Generator().manual_seed(6)
    problems = []
    for k in range(count):
        norm, limit, scale = (10.0 ** (4.0 * torch.rand(3, generator=generator, dtype=torch.float64) - 2.0)).tolist()
        parts = torch.zeros(1, 1024, dtype=torch.float64)
        parts[0, k] = norm * norm
        problem = Problem(partial_sums=parts, max_grad_norm=limit, grad_scale=one(scale) if k % 4 == 3 else None)
        problem.pairs = problem.pairs[-1:]
        problems.append(problem)
    return problems


def clip_factors(operator: Any) -> Tensor:
    column = StepScalars._fields.index("grad_scale_factor")
    return torch.stack([problem.made_by(operator)[0][0, column] for problem in clip_problems()])


def clip_factors_by(coefficient: Callable[[float, float], float]) -> Tensor:
    """The factors by a formula for the coefficient, in Python's own arithmetic."""
    factors = []
    for problem in clip_problems():
        scale = 1.0 if problem.given["grad_scale"] is None else problem.given["grad_scale"].double().item()
        norm = math.sqrt(problem.given["partial_sums"].sum().item()) / scale
        factors.append(min(coefficient(problem.given["max_grad_norm"], norm), 1.0) / scale)
    return torch.tensor(factors, dtype=torch.float64)


def test_one_clip_coefficient(backend: str) -> None:
    """The reciprocal of the norm times the limit, as `torch.nn.utils.clip_grad_norm_` rounds it, from every backend."""
    factors = clip_factors(OPERATORS[backend].scalars)
    assert same_bits(factors, clip_factors_by(lambda limit, norm: 1.0 / (norm + 1e-6) * limit))
    assert (factors < 1.0).sum() > 20
    quotient = clip_factors_by(lambda limit, norm: limit / (norm + 1e-6))
    assert not same_bits(factors, quotient)  # the negative control: a formula that is rounded once less


def test_one_clip_coefficient_in_the_cuda_kernel(host_kernels: ctypes.CDLL) -> None:
    assert same_bits(clip_factors(host_scalars(host_kernels, Geometry())), clip_factors(OPERATORS["reference"].scalars))


@pytest.mark.parametrize("count", [1, 465, 2500], ids=["1_row", "465_rows", "2500_rows"])
def test_any_number_of_rows_and_segments(count: int, backend: str) -> None:
    """More rows and step counts than threads; several rows use one segment's count."""
    problem = Problem()
    problem.taken = torch.arange(count, dtype=torch.float32) % 97
    problem.counted = (torch.arange(count) % 3 != 1).float()
    problem.pairs = torch.stack([torch.arange(count) % len(BETA2), (torch.arange(count) * 7 + 3) % count], dim=1)
    assert_same(problem.made_by(OPERATORS[backend].scalars), problem.made_by(OPERATORS["reference"].scalars))


@pytest.mark.sampled
@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["scaled_and_clipped"], OPTIONS["lr_expanded"]])
def test_opcheck(options: dict, backend: str) -> None:
    result = torch.library.opcheck(OPERATORS[backend].scalars, Problem(**options).arguments())
    assert set(result.values()) == {"SUCCESS"}
    assert len(result) == 4


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (
            0,
            torch.zeros(9, 14, dtype=torch.float64),
            r"group_scalars must be contiguous float64 of shape \(groups, 16\)",
        ),
        (0, torch.zeros(9, len(GroupScalars._fields)), "group_scalars must be"),
        (1, torch.zeros(4, 2), r"sources must be contiguous int64 of shape \(n, 2\)"),
        (1, torch.tensor([[0, 0], [9, 0]]), "sources: row 1 names group 9 of 9"),
        (1, torch.tensor([[0, 0], [0, len(STEPS)]]), "sources: row 1 names segment 62 of 62"),
        (2, torch.ones(3), "counted must be contiguous float32 with one element a step count"),
        (3, torch.ones(len(STEPS), dtype=torch.float64), "steps must be contiguous float32"),
        (4, torch.ones(len(STEPS)), "taken must be contiguous float64 with one element a step count"),
        (5, torch.zeros(3), "lr must be float32 or float64 with one element a group"),
        (5, torch.zeros(9, dtype=torch.int64), "lr must be"),
        (6, torch.zeros(1024, dtype=torch.float64), r"partial_sums must be contiguous float64 of shape \(k, 1024\)"),
        (8, torch.ones(2), "grad_scale must be float32 with one element"),
        (9, torch.ones((), dtype=torch.float64), "found_inf must be float32 with one element"),
    ],
    ids=[
        "columns_of_group_scalars",
        "dtype_of_group_scalars",
        "dtype_of_pairs",
        "group",
        "segment",
        "length_of_counted",
        "dtype_of_steps",
        "dtype_of_taken",
        "length_of_lr",
        "dtype_of_lr",
        "shape_of_squares",
        "length_of_grad_scale",
        "dtype_of_found_inf",
    ],
)
def test_native_refuses_before_it_writes(position: int, value: Tensor, message: str) -> None:
    arguments = [*Problem().arguments()]
    steps = arguments[3].clone()
    arguments[position] = value
    with pytest.raises(RuntimeError, match=message):
        OPERATORS["cpu"].scalars(*arguments)
    assert torch.equal(arguments[3], value if position == 3 else steps)
