"""Rows made by the host and by a rows operator: the same bits, and right where torch's float32 steps are not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.optim.radam as torch_radam
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from radam_fused import FusedRAdam
from radam_fused.backends.ops import OPERATORS
from radam_fused.numerics.scalars import ADAPTIVE, Row, hyper, step_row
from radam_fused.options import GROUP_DEFAULTS
from tests.support.helpers import same_bits

BETA2 = (0.9, 0.99, 0.999, 0.9995, 0.9999, 0.99999, 0.999999)
STEPS = range(1, 41)

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "threshold_4": {"rho_threshold": 4.0},
    "hold": {"degenerated_to_sgd": False, "decoupled_weight_decay": True, "weight_decay": 0.1},
    "exact": {"rectification": "exact", "maximize": True},
    "adam": {"rectification": "none", "eps": 1e-6, "weight_decay": 0.1},
    "no_momentum": {"betas": (0.0, 0.999), "lr": 0.0},
}


@pytest.fixture
def device(backend: str) -> torch.device:
    return torch.device("cuda" if backend == "triton" and torch.cuda.is_available() else "cpu")


def group(beta2: float, **options: Any) -> dict[str, Any]:
    return {"betas": (0.9, beta2), **options}


def host_rows(groups: list[dict[str, Any]], t: int) -> Tensor:
    return torch.tensor([step_row({**GROUP_DEFAULTS, **g}, t) for g in groups], dtype=torch.float64)


def device_rows(groups: list[dict[str, Any]], steps: range, backend: str, device: torch.device) -> Iterator[Tensor]:
    """What the rows operator says in each step, a row a group."""
    table = torch.tensor([hyper(h := {**GROUP_DEFAULTS, **g}, h["lr"]) for g in groups], dtype=torch.float64)
    pairs = torch.tensor([(i, i) for i in range(len(groups))])
    counts = torch.full((len(groups),), steps.start - 1.0, device=device)
    tensors = table.to(device), pairs.to(device), torch.ones_like(counts), counts, counts.double()
    for t in steps:
        rows, norm = OPERATORS[backend].rows(*tensors, None, None, 0.0, None, None)
        assert counts.tolist() == [float(t)] * len(groups)
        assert norm.item() == 0.0
        yield rows.cpu()


# Both make the same rows.


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_whole_rows(variant: dict, backend: str, device: torch.device) -> None:
    groups = [{**group(beta2), **variant} for beta2 in BETA2]
    for t, rows in zip(STEPS, device_rows(groups, STEPS, backend, device), strict=True):
        assert same_bits(rows, host_rows(groups, t)), f"t = {t}"


@pytest.mark.parametrize("late", [1000, 1_000_000, 2**24 - 2], ids=lambda t: f"t_{t}")
def test_whole_rows_late_in_training(late: int, backend: str, device: torch.device) -> None:
    """Up to where a float32 count ends."""
    groups = [{**group(beta2), **variant} for variant in VARIANTS.values() for beta2 in BETA2]
    steps = range(late, late + 2)
    for t, rows in zip(steps, device_rows(groups, steps, backend, device), strict=True):
        assert same_bits(rows, host_rows(groups, t))


def test_another_beta2_gives_other_rows(backend: str, device: torch.device) -> None:
    """The negative control: one unit in the last place of beta2, from the step on that is rectified."""
    groups = [group(beta2) for beta2 in BETA2]
    changed = [group(math.nextafter(beta2, 0.0)) for beta2 in BETA2]
    (rows,) = device_rows(changed, range(30, 31), backend, device)
    alphas = Row._fields.index("alpha")
    assert (rows != host_rows(groups, 30)).any(dim=1).all()
    assert (rows != host_rows(groups, 30))[:, alphas].any()


class SeenRows(TorchDispatchMode):
    """Keeps the rows of every step operator that is called."""

    def __enter__(self) -> SeenRows:
        self.rows: list[Tensor] = []
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "radam_fused" and func._opname.startswith("step"):
            self.rows.append(args[6].detach().cpu().clone())
        return func(*args, **(kwargs or {}))


Trained = tuple[list[nn.Parameter], list[Tensor], FusedRAdam]


def training_run(
    backend: str,
    device: torch.device,
    steps: range,
    change: Callable[[FusedRAdam, int], None] | None = None,
    lr: float | Tensor = 0.1,
    **options: Any,
) -> Trained:
    """Parameters, rows and optimizer of a run over a group for each beta2, some gradients missing now and then."""
    generator = torch.Generator().manual_seed(3)
    params = [nn.Parameter(torch.randn(5, generator=generator).to(device)) for _ in BETA2]
    opt = FusedRAdam(
        [{"params": [p], "betas": (0.9, beta2)} for p, beta2 in zip(params, BETA2, strict=True)],
        lr=lr,
        backend=backend,
        **options,
    )
    with SeenRows() as seen:
        for t in steps:
            for i, p in enumerate(params):
                grad = torch.randn(5, generator=generator).to(device)
                p.grad = None if t % 7 == i else grad
            if change is not None:
                change(opt, t)
            opt.step()
    return params, seen.rows, opt


def same_runs(a: Trained, b: Trained) -> bool:
    pairs = [*zip(a[0], b[0], strict=True), *zip(a[1], b[1], strict=True)]
    counts = [[int(o.state[p]["step"]) for p in params] for params, _, o in (a, b)]
    return all(same_bits(x, y) for x, y in pairs) and counts[0] == counts[1]


WAYS: dict[str, dict[str, Any]] = {
    "capturable": {"capturable": True},
    "measured_norm": {"max_grad_norm": float("inf")},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_training_run(way: dict, backend: str, device: torch.device) -> None:
    """Rows, parameters and counts; a gradient is missing in the very first step and in later ones."""
    steps = STEPS if backend != "triton" or device.type == "cuda" else STEPS[:12]
    eager, by_device = (training_run(backend, device, steps, **options) for options in ({}, way))
    assert len(eager[1]) == len(steps)
    assert same_runs(eager, by_device)


@pytest.mark.parametrize("flatten", [False, True], ids=["apart", "flatten"])
@pytest.mark.parametrize("when", [0, 1, 5, 7], ids=lambda n: f"before_step_{n}")
def test_capturable_from_some_step_on(when: int, flatten: bool) -> None:
    """The counts that the host knew go on, also those of a parameter that is left out of that very step."""

    def change(opt: FusedRAdam, t: int) -> None:
        for g in opt.param_groups:
            g["capturable"] = t >= when

    runs = [training_run("reference", torch.device("cpu"), range(16), c, flatten=flatten) for c in (None, change)]
    assert same_runs(*runs)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.float16], ids=["fp32", "fp64", "fp16"])
@pytest.mark.parametrize("shape", [(), (1,)], ids=["0-d", "1-d"])
@pytest.mark.parametrize("groups_with_their_own", [0, 1])
def test_tensor_lr_read_by_host_and_device(groups_with_their_own: int, shape: tuple, kind: torch.dtype) -> None:
    """Changed in place before every step, and shared by all groups or all but the first, whose own is a float."""
    runs = []
    for capturable in (False, True):
        lr = torch.full(shape, 0.1, dtype=kind)

        def change(opt: FusedRAdam, t: int, lr: Tensor = lr) -> None:
            for g in opt.param_groups[:groups_with_their_own]:
                g["lr"] = 0.3
            lr.fill_(0.1 / (t + 1))

        runs.append(training_run("reference", torch.device("cpu"), range(8), change, lr, capturable=capturable))
    assert same_runs(*runs)
    fixed = training_run("reference", torch.device("cpu"), range(8), None, 0.1)
    assert not same_runs(fixed, runs[0])


# Both are float64 mathematics.


def exact_alpha(t: int, beta1: float, beta2: float) -> tuple[float, bool]:
    """alpha / lr and whether the step is rectified, from the very float64 betas: rational but for one square root."""
    b1, b2 = Fraction(beta1), Fraction(beta2)
    c1, c2 = 1 - b1**t, 1 - b2**t
    limit = 2 / (1 - b2) - 1
    rho = limit - 2 * t * b2**t / c2
    if rho <= 5:
        return float(1 / c1), False
    square = (rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho) * c2 / c1**2
    with localcontext() as context:
        context.prec = 40
        return float((Decimal(square.numerator) / Decimal(square.denominator)).sqrt()), True


@pytest.mark.parametrize("beta2", BETA2)
def test_alpha_is_float64_mathematics(beta2: float, backend: str, device: torch.device) -> None:
    for t, rows in zip(STEPS, device_rows([group(beta2, lr=1.0)], STEPS, backend, device), strict=True):
        row = Row(*rows[0].tolist())
        alpha, rectified = exact_alpha(t, 0.9, beta2)
        assert (row.direction == ADAPTIVE) == rectified
        assert row.alpha == pytest.approx(alpha, rel=2e-13, abs=0)


# torch.optim.RAdam(capturable=True) computes rho_t in float32, from a float32 step: about t, and the difference of
# rho_inf and 2 t beta2^t / (1 - beta2^t), two numbers of size 2 / (1 - beta2). From beta2 = 0.9995 on, what that
# leaves crosses the branch before its time, and beyond it makes steps wrong by tens of percent and more.


def torchs_capturable_update(t: int, beta2: float, exp_avg_sq: Tensor, eps: float = 1e-8) -> Tensor:
    """What the capturable branch of torch/optim/radam.py (2.13) multiplies ``lr * m / (1 - beta1^t)`` with."""
    step_t = torch.tensor(float(t))  # as torch keeps it: float32
    bias_correction2 = 1 - beta2**step_t
    rho_inf = 2 / (1 - beta2) - 1
    rho_t = rho_inf - 2 * step_t * (beta2**step_t) / bias_correction2
    rect = ((rho_t - 4) * (rho_t - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho_t)) ** 0.5
    return torch.where(rho_t > 5.0, rect * ((bias_correction2**0.5) / (exp_avg_sq.sqrt() + eps)), 1.0)


def torchs_step(t: int, beta2: float) -> float:
    """The size of torch's capturable step number t, in units of lr, where every gradient was 1."""
    return torchs_capturable_update(t, beta2, torch.tensor(1 - beta2**t)).item()


def our_step(t: int, beta2: float) -> float:
    """The same of ours; m / (1 - beta1^t) is 1, and v is 1 - beta2^t."""
    row = step_row({**GROUP_DEFAULTS, "betas": (0.9, beta2), "lr": 1.0}, t)
    unscaled = row.alpha * (1 - 0.9**t)
    return unscaled / (math.sqrt(1 - beta2**t) + 1e-8) if row.direction == ADAPTIVE else unscaled


def exact_step(t: int, beta2: float) -> float:
    alpha, rectified = exact_alpha(t, 0.9, beta2)
    unscaled = alpha * (1 - 0.9**t)
    return unscaled / (math.sqrt(1 - beta2**t) + 1e-8) if rectified else unscaled


def test_the_formula_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU torch refuses its capturable branch unless it believes to be compiled."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for beta2, t in itertools.product(BETA2, range(1, 10)):
        p, m, v = torch.zeros(1), torch.ones(1), torch.full((1,), 0.25)
        torch_radam._single_tensor_radam(
            [p],
            [torch.ones(1)],
            [m],
            [v],
            [torch.tensor(t - 1.0)],
            beta1=0.0,
            beta2=beta2,
            lr=1.0,
            weight_decay=0.0,
            eps=1e-8,
            decoupled_weight_decay=False,
            differentiable=False,
            maximize=False,
            capturable=True,
            has_complex=False,
        )
        assert p.item() == pytest.approx(-torchs_capturable_update(t, beta2, v).item(), rel=1e-6)


@pytest.mark.parametrize("beta2", BETA2)
def test_our_step_is_right(beta2: float) -> None:
    for t in STEPS:
        assert our_step(t, beta2) == pytest.approx(exact_step(t, beta2), rel=1e-9)


TORCHS_ERRORS: dict[tuple[float, int], float] = {
    (0.9, 6): 0.0,
    (0.999, 6): -0.006,
    (0.9995, 5): -0.987,  # rho_t of 4.999 comes out above 5: a rectified step where the plain one is due
    (0.9995, 6): 0.051,
    (0.9999, 2): -0.991,
    (0.9999, 6): 0.577,
    (0.9999, 15): 0.143,
    (0.99999, 1): -0.964,
    (0.99999, 6): 13.4,
    (0.99999, 15): 4.6,
    (0.999999, 1): -0.885,
    (0.999999, 6): 140.0,
    (0.999999, 15): 52.0,
}
"""How much longer torch's capturable step is than it should be, as a part of it."""


@pytest.mark.parametrize(("beta2", "t"), TORCHS_ERRORS, ids=lambda value: f"{value}")
def test_torchs_capturable_step_is_wrong_where_ours_is_right(beta2: float, t: int) -> None:
    exact = exact_step(t, beta2)
    assert torchs_step(t, beta2) / exact - 1 == pytest.approx(TORCHS_ERRORS[beta2, t], rel=0.05, abs=5e-4)
    assert our_step(t, beta2) / exact - 1 == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("beta2", "last_right"), [(0.999, 5), (0.9995, 4), (0.9999, 1), (0.99999, 0), (0.999999, 0)])
def test_the_first_step_that_torchs_capturable_branch_rectifies(beta2: float, last_right: int) -> None:
    """It should be the sixth for all of these."""
    assert [exact_alpha(t, 0.9, beta2)[1] for t in (5, 6)] == [False, True]
    plain = [torchs_step(t, beta2) == 1.0 for t in range(1, 7)]
    assert plain.index(False) == last_right
