"""The Triton scalars kernel, interpreted, against ``reference``, bit for bit."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from radam_fused.numerics.scalars import SKIP_STEP, compute_scalars, group_scalars
from radam_fused.options import GROUP_DEFAULTS
from radam_fused.rectification import KINDS
from tests.support.helpers import noise, one_ulp_up, same_bits
from tests.support.triton_operators import REFERENCE, TRITON

BETA2 = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9995, 0.9999, 0.99999, 0.999999)
STEPS = (*range(40), 999, 2**24 - 3)
GROUPS = [
    {
        **GROUP_DEFAULTS,
        "lr": 0.01 + 0.001 * k,
        "betas": ((0.0, 0.9, 0.95)[k % 3], beta2),
        "rectification": kind,
        "weight_decay": 0.1 * (k % 2),
        "decoupled_weight_decay": k % 4 == 1,
        "degenerated_to_sgd": k % 5 != 0,
        "maximize": k % 7 == 0,
        "rho_threshold": 4.0 + k % 2,
    }
    for k, (beta2, kind) in enumerate(itertools.product(BETA2, KINDS))
]


def row_arguments(groups: list[dict] = GROUPS, **changes: object) -> dict:
    """Every group at every count; the segments of odd counts do not step."""
    steps = torch.tensor(STEPS, dtype=torch.float32)
    arguments = {
        "group_scalars": torch.tensor(
            [group_scalars(group, float(group["lr"])) for group in groups], dtype=torch.float64
        ),
        "sources": torch.cartesian_prod(torch.arange(len(groups)), torch.arange(len(steps))),
        "counted": (steps % 2 == 0).float(),
        "steps": steps,
        "taken": steps.double(),
        "lr": None,
        "partial_sums": None,
        "max_grad_norm": 1.0,
        "grad_scale": None,
        "found_inf": None,
    }
    return {**arguments, **changes}


def both(arguments: dict) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Scalars, norm and step counts, from Triton and from reference."""
    results = []
    for operators in (TRITON, REFERENCE):
        own = {**arguments, "steps": arguments["steps"].clone(), "taken": arguments["taken"].clone()}
        results.append((*operators.scalars(*own.values()), own["steps"]))
        assert torch.equal(own["taken"], own["steps"].double())
    return results


def assert_same(arguments: dict) -> tuple[Tensor, Tensor, Tensor]:
    ours, expected = both(arguments)
    for name, a, b in zip(("rows", "norm", "steps"), ours, expected, strict=True):
        assert same_bits(a, b), name
    return ours


def test_rows_equal_reference_and_the_host() -> None:
    """The host's own formulas are those of `radam_fused.rectification`, with the same bits."""
    rows, norm, steps = assert_same(row_arguments())
    assert norm == 0
    host = [compute_scalars(group, int(taken) + 1) for group, taken in itertools.product(GROUPS, STEPS)]
    assert same_bits(rows, torch.tensor(host, dtype=torch.float64))
    assert torch.equal(steps, torch.tensor(STEPS) + (torch.tensor(STEPS) % 2 == 0).float())
    changed = rows.clone()
    one_ulp_up(changed, 9 * 777 + 6)  # the negative control
    assert not same_bits(changed, rows)


def norms(value: float, buckets: int = 2) -> Tensor:
    squares = noise(1024 * buckets).square().reshape(buckets, 1024).clone()
    squares[-1, 513] = value
    return squares


@pytest.mark.parametrize("value", [0.5, 1e-320, float("inf"), float("nan")])
@pytest.mark.parametrize("max_grad_norm", [0.1, 1e6, float("inf"), 0.0])
def test_clipping(value: float, max_grad_norm: float) -> None:
    arguments = row_arguments(GROUPS[:2], partial_sums=norms(value), max_grad_norm=max_grad_norm)
    rows, norm, _ = assert_same(arguments)
    factor = abs(rows[0, 7])
    clipped = max_grad_norm / (float(norm) + 1e-6)
    assert float(factor) == pytest.approx(clipped if not clipped > 1 else 1.0, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("layout", ["plain", "expanded", "strided"])
def test_tensor_learning_rates(dtype: torch.dtype, layout: str) -> None:
    values = torch.linspace(0.001, 0.1, 2 * len(GROUPS), dtype=dtype)
    lr = {"plain": values[: len(GROUPS)], "expanded": values[3].expand(len(GROUPS)), "strided": values[::2]}[layout]
    rows, _, _ = assert_same(row_arguments(lr=lr))
    other, _, _ = both(row_arguments(lr=lr + 1e-3))[0]
    assert not same_bits(rows, other)


@pytest.mark.parametrize("found", [0.0, 1.0, float("nan")])
@pytest.mark.parametrize("shape", [(), (1,)], ids=["0-d", "1-d"])
def test_scale_and_found_inf(found: float, shape: tuple[int, ...]) -> None:
    arguments = row_arguments(
        GROUPS[:3],
        partial_sums=norms(1.0, buckets=3),
        grad_scale=torch.full(shape, 3.0),
        found_inf=torch.full(shape, found),
    )
    rows, _, steps = assert_same(arguments)
    skipped = found != 0
    assert bool((rows[:, 8] == SKIP_STEP).all()) == skipped
    assert torch.equal(steps, arguments["steps"]) == skipped


def test_rows_read_counts_before_they_count() -> None:
    """Many rows of one representative parameter, more than a block of them, and more segments than a block counts."""
    groups = [{**GROUP_DEFAULTS, "lr": 0.001 * k} for k in range(300)]
    arguments = row_arguments(
        groups,
        sources=torch.stack([torch.arange(300), torch.full((300,), 2999)], dim=1),
        steps=torch.full((3000,), 6.0),
        taken=torch.full((3000,), 6.0, dtype=torch.float64),
        counted=torch.ones(3000),
    )
    rows, _, steps = assert_same(arguments)
    assert same_bits(rows[299], torch.tensor(compute_scalars(groups[299], 7), dtype=torch.float64))
    assert not same_bits(rows[299], torch.tensor(compute_scalars(groups[299], 8), dtype=torch.float64))
    assert steps.eq(7.0).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("group_scalars", torch.zeros(2, 14, dtype=torch.float64)),
        ("sources", torch.zeros(4, 2, dtype=torch.int32)),
        ("counted", torch.ones(3)),
        ("steps", torch.zeros(2 * len(STEPS))[::2]),
        ("lr", torch.zeros(1)),
        ("partial_sums", torch.zeros(1, 1000, dtype=torch.float64)),
        ("grad_scale", torch.ones(2)),
        ("found_inf", torch.zeros(1, dtype=torch.float64)),
    ],
)
def test_rows_refuse_what_does_not_fit(name: str, value: Tensor) -> None:
    with pytest.raises(ValueError, match=name):
        TRITON.scalars(*row_arguments(**{name: value}).values())
