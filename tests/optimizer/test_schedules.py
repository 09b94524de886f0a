"""The warm-ups against their definitions, as torch schedulers, and Adam under r_t against RAdam."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, SequentialLR

from radam_fused import FusedRAdam, schedules
from radam_fused.schedules import RectifiedWarmup, UntunedExponentialWarmup, UntunedLinearWarmup
from tests.support.paths import ROOT

VECTORS = json.loads((ROOT / "tests" / "golden" / "rectification.json").read_text())


def r_t(t: int, beta2: float) -> float:
    """The paper's algorithm 2 as it is printed, with the threshold of 5."""
    limit = 2 / (1 - beta2) - 1
    length = limit - 2 * t * beta2**t / (1 - beta2**t)
    if length <= 5:
        return 0.0
    return math.sqrt((length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length))


WARMUPS = {
    UntunedLinearWarmup: lambda t, beta2: min(1.0, (1 - beta2) / 2 * t),
    UntunedExponentialWarmup: lambda t, beta2: 1 - math.exp(-(1 - beta2) * t),
    RectifiedWarmup: r_t,
}


def optimizer(*beta2s: float, lr: float = 0.5, **options) -> torch.optim.Adam:
    groups = [{"params": [torch.nn.Parameter(torch.ones(3))], "betas": (0.9, beta2)} for beta2 in beta2s]
    return torch.optim.Adam(groups, lr=lr, **options)


def rates(opt, scheduler, steps: int) -> list[list[float]]:
    found = []
    for _ in range(steps):
        found.append([float(group["lr"]) for group in opt.param_groups])
        opt.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("warmup", WARMUPS)
def test_each_group_follows_the_definition_with_its_own_beta2(warmup) -> None:
    opt = optimizer(0.9, 0.98, 0.5)
    found = rates(opt, warmup(opt), 150)
    for t, row in enumerate(found, start=1):
        expected = [0.5 * WARMUPS[warmup](t, beta2) for beta2 in (0.9, 0.98, 0.5)]
        assert row == pytest.approx(expected, rel=1e-11, abs=0)
    # Negative controls: a step late or early, another group's beta2.
    for t, beta2 in ((11, 0.9), (13, 0.9), (12, 0.98)):
        assert found[11][0] != pytest.approx(0.5 * WARMUPS[warmup](t, beta2), rel=1e-3)


@pytest.mark.parametrize("kind", ["first_order", "exact"])
@pytest.mark.parametrize("beta2", [0.99, 0.999, 0.9999])
def test_r_t_against_the_vectors(kind, beta2) -> None:
    known = {v["t"]: v for v in VECTORS if v["beta2"] == beta2 and v["t"] <= 1000}
    opt = optimizer(beta2)
    found = rates(opt, RectifiedWarmup(opt, kind, threshold=4.0), 1000)
    for t, v in known.items():
        assert found[t - 1][0] == pytest.approx(0.5 * v.get(f"r_{kind}", 0.0), rel=1e-12, abs=0)
    other = {"first_order": "exact", "exact": "first_order"}[kind]
    assert found[4][0] != pytest.approx(0.5 * known[5][f"r_{other}"], rel=0.4)


def test_landmarks() -> None:
    """Numbers from the papers: 2 / (1 - beta2) steps; 1 - 1/e after 1 / (1 - beta2); rectified from step 6, or 5."""
    assert schedules.untuned_linear(1, 0.999) == pytest.approx(0.0005)
    assert schedules.untuned_linear(1999, 0.999) < 1.0
    assert schedules.untuned_linear(2001, 0.999) == 1.0
    assert schedules.untuned_exponential(1000, 0.999) == pytest.approx(1 - 1 / math.e)
    assert schedules.untuned_exponential(1, 1 - 1e-12) == pytest.approx(1e-12, rel=1e-3)
    assert [schedules.rectified(t, 0.999) > 0 for t in (5, 6)] == [False, True]
    assert [schedules.rectified(t, 0.999, threshold=4.0) > 0 for t in (4, 5)] == [False, True]
    assert schedules.rectified(100, 0.999) == pytest.approx(0.215, abs=5e-4)
    assert schedules.rectified(6, 0.999, "exact") / schedules.rectified(6, 0.999) == pytest.approx(1.47, abs=5e-3)
    assert schedules.rectified(1, 0.999, "none") == 1.0


@pytest.mark.parametrize("warmup", WARMUPS)
def test_resumes(warmup) -> None:
    whole = optimizer(0.9)
    expected = rates(whole, warmup(whole), 30)
    first = optimizer(0.9)
    scheduler = warmup(first)
    rates(first, scheduler, 12)
    saved = pickle.loads(pickle.dumps((first.state_dict(), scheduler.state_dict())))
    second = optimizer(0.9)
    resumed = warmup(second)
    second.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert rates(second, resumed, 18) == expected[12:]
    # As every torch scheduler: last_epoch without a state, for groups that have their initial_lr.
    third = optimizer(0.9)
    third.load_state_dict(saved[0])
    assert rates(third, warmup(third, last_epoch=11), 18) == expected[12:]


@pytest.mark.parametrize("warmup", WARMUPS)
def test_before_and_after_another_scheduler(warmup) -> None:
    opt = optimizer(0.9)
    found = rates(opt, SequentialLR(opt, [warmup(opt), CosineAnnealingLR(opt, 20)], milestones=[10]), 20)
    alone = optimizer(0.9)
    cosine = rates(alone, CosineAnnealingLR(alone, 20), 10)
    expected = [0.5 * WARMUPS[warmup](t, 0.9) for t in range(1, 11)]
    assert [row[0] for row in found[:10]] == pytest.approx(expected, rel=1e-11, abs=0)
    assert [row[0] for row in found[10:]] == pytest.approx([row[0] for row in cosine])

    opt = optimizer(0.9)
    found = rates(opt, SequentialLR(opt, [ConstantLR(opt, 0.25, 9), warmup(opt)], milestones=[5]), 15)
    assert found[:5] == [[0.125]] * 5
    assert [row[0] for row in found[5:]] == pytest.approx(expected, rel=1e-11, abs=0)


def test_a_tensor_learning_rate_stays_a_tensor() -> None:
    opt = optimizer(0.9, lr=torch.tensor(0.5), foreach=False, capturable=False)
    found = rates(opt, UntunedLinearWarmup(opt), 5)
    assert isinstance(opt.param_groups[0]["lr"], torch.Tensor)
    assert [row[0] for row in found] == pytest.approx([0.5 * 0.05 * t for t in range(1, 6)])


def test_refused() -> None:
    with pytest.raises(ValueError, match="no 'betas'"):
        UntunedLinearWarmup(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1))
    with pytest.raises(ValueError, match="kind"):
        RectifiedWarmup(optimizer(0.9), kind="second_order")
    with pytest.raises(ValueError, match="threshold"):
        RectifiedWarmup(optimizer(0.9), threshold=3.0)
    for function in (schedules.untuned_linear, schedules.untuned_exponential, schedules.rectified):
        with pytest.raises(ValueError, match="t = 0"):
            function(0, 0.9)
        with pytest.raises(ValueError, match="beta2"):
            function(1, 1.0)


def trajectory(make, warmup=None, steps: int = 40, size: float = 1.0) -> torch.Tensor:
    """A parameter in float64, step by step, on fixed gradients."""
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(50, dtype=torch.float64, generator=generator))
    opt = make([parameter])
    scheduler = warmup(opt) if warmup else None
    rows = []
    for _ in range(steps):
        parameter.grad = size * torch.randn(50, dtype=torch.float64, generator=generator)
        opt.step()
        if scheduler:
            scheduler.step()
        rows.append(parameter.detach().clone())
    return torch.stack(rows)


def radam(eps: float, **options):
    return lambda p: FusedRAdam(p, lr=0.01, betas=(0.9, 0.98), eps=eps, degenerated_to_sgd=False, **options)


def adam(eps: float, kind=torch.optim.Adam, **options):
    return lambda p: kind(p, lr=0.01, betas=(0.9, 0.98), eps=eps, **options)


@pytest.mark.parametrize("kind", ["first_order", "exact"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("threshold", [4.0, 5.0])
def test_adam_under_r_t_is_radam_where_eps_is_zero(kind, decay, threshold) -> None:
    """Coupled decay included: it acts on the gradient. Adam is torch's, and this package's."""
    expected = trajectory(radam(0.0, weight_decay=decay, rectification=kind, rho_threshold=threshold))

    def warmup(opt):
        return RectifiedWarmup(opt, kind, threshold)

    for make in (adam(0.0, weight_decay=decay), adam(0.0, FusedRAdam, weight_decay=decay, rectification="none")):
        torch.testing.assert_close(trajectory(make, warmup), expected, rtol=1e-12, atol=1e-14)
    # Negative control: another threshold is another trajectory.
    other = trajectory(adam(0.0, weight_decay=decay), lambda opt: RectifiedWarmup(opt, kind, 9.0 - threshold))
    assert not torch.allclose(other, expected, rtol=1e-6)


def test_eps_is_where_they_differ() -> None:
    """RAdam's eps is Adam's times sqrt(c2): with Adam's eps made to follow it they are equal, else within the bound."""
    eps, betas, steps = 1e-2, (0.9, 0.98), 40
    expected = trajectory(radam(eps), size=0.1)

    def following(opt):
        """Before each step: eps / sqrt(c2)."""

        def before(opt, args, kwargs):
            t = scheduler.last_epoch + 1
            opt.param_groups[0]["eps"] = eps / math.sqrt(1 - betas[1] ** t)

        scheduler = RectifiedWarmup(opt)
        opt.register_step_pre_hook(before)
        return scheduler

    found = trajectory(adam(eps), following, size=0.1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)

    plain = trajectory(adam(eps), RectifiedWarmup, size=0.1)
    assert not torch.allclose(plain, expected, rtol=1e-4)
    generator = torch.Generator().manual_seed(0)
    torch.randn(50, dtype=torch.float64, generator=generator)
    v, before = torch.zeros(50, dtype=torch.float64), None
    for t in range(1, steps + 1):
        g = 0.1 * torch.randn(50, dtype=torch.float64, generator=generator)
        v = betas[1] * v + (1 - betas[1]) * g * g
        if before is not None:
            ours, theirs = expected[t - 1] - expected[before], plain[t - 1] - plain[before]
            part = eps * (1 - math.sqrt(1 - betas[1] ** t)) / (v.sqrt() + eps)
            assert ((theirs - ours).abs() <= theirs.abs() * part + 1e-12).all()
        before = t - 1


def test_decoupled_decay_is_where_they_differ_too() -> None:
    fused = trajectory(radam(0.0, weight_decay=0.1, decoupled_weight_decay=True))
    scheduled = trajectory(adam(0.0, torch.optim.AdamW, weight_decay=0.1), RectifiedWarmup)
    assert not torch.allclose(fused, scheduled, rtol=1e-4)


def with_betas(betas: Any = (0.9, 0.999)) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam([torch.zeros(3, requires_grad=True)])
    optimizer.param_groups[0]["betas"] = betas
    return optimizer


NOT_ALLOWED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "optimizer": (lambda: UntunedLinearWarmup(3), TypeError, "optimizer = 3: must be a torch.optim.Optimizer"),
    "betas": (lambda: UntunedLinearWarmup(with_betas(3)), TypeError, r"param_groups\[0\]: betas = 3: must be a pair"),
    "beta2": (lambda: UntunedLinearWarmup(with_betas((0.9, "x"))), TypeError, "beta2 = 'x': must be a number, in"),
    "last_epoch": (
        lambda: UntunedLinearWarmup(with_betas(), 1.5),
        TypeError,
        "last_epoch = 1.5: must be a whole number",
    ),
    "before": (lambda: UntunedLinearWarmup(with_betas(), -2), ValueError, "last_epoch = -2: must be at least -1"),
    "kind": (lambda: RectifiedWarmup(with_betas(), kind=[]), ValueError, r"kind = \[\]: must be one of"),
    "threshold": (lambda: RectifiedWarmup(with_betas(), threshold="5"), TypeError, "threshold = '5': must be a number"),
    "infinite": (
        lambda: RectifiedWarmup(with_betas(), threshold=math.inf),
        ValueError,
        "threshold = inf: .* not infinite",
    ),
    "t": (lambda: schedules.untuned_linear("1", 0.9), TypeError, "t = '1': must be a number, at least 1"),
    "infinite_t": (
        lambda: schedules.rectified(math.inf, 0.9),
        ValueError,
        "t = inf: must be at least 1, .* and finite",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), NOT_ALLOWED.values(), ids=list(NOT_ALLOWED))
def test_errors_name_the_argument_its_value_and_what_is_allowed(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()
