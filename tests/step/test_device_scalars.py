"""The scalars that the host computes and those of a scalars operator are the same bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from radam_fused import FusedRAdam
from radam_fused.numerics.scalars import StepScalars, compute_scalars
from radam_fused.options import GROUP_DEFAULTS
from tests.support.device_scalars import BETA2, STEPS, device_scalars, group
from tests.support.helpers import same_bits

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "threshold_4": {"rho_threshold": 4.0},
    "hold": {"degenerated_to_sgd": False, "decoupled_weight_decay": True, "weight_decay": 0.1},
    "exact": {"rectification": "exact", "maximize": True},
    "adam": {"rectification": "none", "eps": 1e-6, "weight_decay": 0.1},
    "no_momentum": {"betas": (0.0, 0.999), "lr": 0.0},
}


def host_scalars(groups: list[dict[str, Any]], t: int) -> Tensor:
    return torch.tensor([compute_scalars({**GROUP_DEFAULTS, **g}, t) for g in groups], dtype=torch.float64)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_whole_rows(variant: dict, backend: str, device: torch.device) -> None:
    groups = [{**group(beta2), **variant} for beta2 in BETA2]
    for t, rows in zip(STEPS, device_scalars(groups, STEPS, backend, device), strict=True):
        assert same_bits(rows, host_scalars(groups, t)), f"t = {t}"


@pytest.mark.parametrize("late", [1000, 1_000_000, 2**24 - 2], ids=lambda t: f"t_{t}")
def test_whole_rows_late_in_training(late: int, backend: str, device: torch.device) -> None:
    """Up to where a float32 count ends."""
    groups = [{**group(beta2), **variant} for variant in VARIANTS.values() for beta2 in BETA2]
    steps = range(late, late + 2)
    for t, rows in zip(steps, device_scalars(groups, steps, backend, device), strict=True):
        assert same_bits(rows, host_scalars(groups, t))


def test_another_beta2_gives_other_rows(backend: str, device: torch.device) -> None:
    """The negative control: one unit in the last place of beta2, from the step on that is rectified."""
    groups = [group(beta2) for beta2 in BETA2]
    changed = [group(math.nextafter(beta2, 0.0)) for beta2 in BETA2]
    (rows,) = device_scalars(changed, range(30, 31), backend, device)
    alphas = StepScalars._fields.index("step_size")
    assert (rows != host_scalars(groups, 30)).any(dim=1).all()
    assert (rows != host_scalars(groups, 30))[:, alphas].any()


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
