"""Every scheduler of torch, with flat buffers, a tensor learning rate and 8-bit moments, beside torch.optim.RAdam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as torchs
from torch.optim.swa_utils import SWALR

from radam_fused import FusedRAdam

STEPS = 16
MAKE: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: torchs.LambdaLR(o, lambda t: 1 / (1 + t)),
    "MultiplicativeLR": lambda o: torchs.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: torchs.StepLR(o, 3),
    "MultiStepLR": lambda o: torchs.MultiStepLR(o, [2, 9]),
    "ConstantLR": lambda o: torchs.ConstantLR(o, 0.1, 14),
    "LinearLR": lambda o: torchs.LinearLR(o, 0.01, 1.0, 15),
    "ExponentialLR": lambda o: torchs.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: torchs.PolynomialLR(o, 12),
    "CosineAnnealingLR": lambda o: torchs.CosineAnnealingLR(o, STEPS),
    "CosineAnnealingWarmRestarts": lambda o: torchs.CosineAnnealingWarmRestarts(o, 5),
    "CyclicLR": lambda o: torchs.CyclicLR(o, 0.001, 0.02, 3),
    "OneCycleLR": lambda o: torchs.OneCycleLR(o, 0.02, STEPS + 1),
    "ReduceLROnPlateau": lambda o: torchs.ReduceLROnPlateau(o, "min", 0.1, 1),
    "ChainedScheduler": lambda o: torchs.ChainedScheduler([torchs.ExponentialLR(o, 0.9), torchs.StepLR(o, 4)]),
    "SequentialLR": lambda o: torchs.SequentialLR(
        o, [torchs.LinearLR(o, 0.1, 1.0, 6), torchs.CosineAnnealingLR(o, STEPS - 6)], [6]
    ),
    "SWALR": lambda o: SWALR(o, 0.002, 5),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "flatten": {"flatten": True},
    "tensor lr": {"lr": torch.tensor(0.01, dtype=torch.float64)},
    "int8": {"state_dtype": torch.int8},
}


def run(optimizer: type, scheduler: str | None, **options: Any) -> tuple[list[float], list[Tensor], list[Tensor]]:
    """The rate of each step, and the weights halfway and at the end."""
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    if isinstance(options.get("lr"), Tensor):
        options["lr"] = options["lr"].clone()  # schedulers write into it
    made = optimizer(model.parameters(), **{"lr": 0.01, "betas": (0.9, 0.99), **options})
    schedule = None if scheduler is None else MAKE[scheduler](made)
    rates, half = [], []
    for t in range(STEPS):
        rates.append(float(made.param_groups[0]["lr"]))
        x = torch.randn(16, 64, generator=torch.Generator().manual_seed(t))
        (model(x) - x).square().mean().backward()
        made.step()
        made.zero_grad()
        if scheduler == "ReduceLROnPlateau":
            schedule.step(1.0)
        elif schedule is not None:
            schedule.step()
        if t == STEPS // 2:
            half = [p.detach().clone() for p in model.parameters()]
    return rates, half, [p.detach().clone() for p in model.parameters()]


def test_all_of_torch_s_are_here() -> None:
    bases = {"LRScheduler"}
    assert {name for name in torchs.__all__ if isinstance(getattr(torchs, name), type)} - bases == set(MAKE) - {"SWALR"}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("scheduler", MAKE)
def test_as_torch_does(scheduler: str, option: str) -> None:
    ours, theirs = run(FusedRAdam, scheduler, **OPTIONS[option]), run(torch.optim.RAdam, scheduler)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-12)
    assert len(set(ours[0])) > 1  # the control: the rate changes
    tolerance = 2e-3 if option == "int8" else 2e-6
    for a, b in zip(ours[1] + ours[2], theirs[1] + theirs[2], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("scheduler", MAKE)
def test_another_rate_is_another_run(scheduler: str) -> None:
    """The negative control: without the scheduler the weights are others by more than any tolerance above."""
    constant, scheduled = run(FusedRAdam, None)[2], run(FusedRAdam, scheduler)[2]
    assert max((a - b).abs().max() for a, b in zip(constant, scheduled, strict=True)) > 4e-3


@pytest.mark.parametrize("scheduler", ["CyclicLR", "OneCycleLR"])
def test_schedulers_that_cycle_beta1(scheduler: str) -> None:
    """They write ``betas`` into the groups, which the next step uses."""
    model = nn.Linear(2, 2)
    optimizer = FusedRAdam(model.parameters(), lr=0.01)
    schedule, seen = MAKE[scheduler](optimizer), set()
    for _ in range(6):
        model(torch.ones(2)).sum().backward()
        optimizer.step()
        schedule.step()
        seen.add(optimizer.param_groups[0]["betas"][0])
    assert len(seen) > 3
