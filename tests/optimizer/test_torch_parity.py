"""The trajectories of torch.optim's RAdam, Adam and AdamW, parameter by parameter and step by step.

torch's lines in float32 are not this package's (docs/design.md, the numeric contract), so float32 is judged by a run in
float64 from the same numbers: this package has to be at it, and no further from torch than torch is from it. In float64
both are compared with each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from tests.support.torch_pairs import GROUPS, RUNS, TOLERANCE, TRITON_RUN, Pair, run_id

# torch.testing._internal.common_optimizers, optim_inputs_func_radam and optim_inputs_func_adam, as of torch 2.13: the
# configurations that are neither capturable nor amsgrad. (That module needs the package expecttest, so not imported.)
RADAM_TABLE: dict[str, dict[str, Any]] = {
    "default": {},
    "non-default_lr": {"lr": 2e-3},
    "non-default_eps": {"eps": 1e-6},
    "nonzero_weight_decay": {"weight_decay": 0.1},
    "decoupled_weight_decay": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "maximize": {"weight_decay": 0.1, "maximize": True},
}
ADAM_TABLE: dict[str, dict[str, Any]] = {
    "default": {},
    "non-default_lr": {"lr": 0.01},
    "nonzero_weight_decay": {"weight_decay": 0.1},
    "maximize": {"weight_decay": 0.1, "maximize": True},
    # ours
    "fast_betas": {"betas": (0.5, 0.9)},
    "slow_betas": {"betas": (0.95, 0.9995), "weight_decay": 0.01},
    "no_momentum": {"betas": (0.0, 0.99)},
    "large_eps": {"eps": 1e-3, "weight_decay": 0.02},
}


def fifty_steps(pair: Pair) -> Pair:
    for _ in range(50):
        pair.step()
    return pair


@pytest.mark.sampled
@pytest.mark.parametrize("foreach", [False, True], ids=["for-loop", "foreach"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "fp64"])
@pytest.mark.parametrize("options", RADAM_TABLE.values(), ids=RADAM_TABLE)
@pytest.mark.parametrize(("backend", "flatten"), RUNS, ids=run_id)
def test_radam(backend: str, flatten: bool, options: dict, dtype: torch.dtype, foreach: bool) -> None:
    options = {**options, "foreach": foreach}
    pair = fifty_steps(Pair(options, backend=backend, flatten=flatten, dtype=dtype))
    assert pair.close()
    assert pair.same_steps()


@pytest.mark.parametrize("name", ["default", "decoupled_weight_decay", "maximize"])
def test_radam_on_triton(name: str) -> None:
    backend, flatten = TRITON_RUN
    assert fifty_steps(Pair(RADAM_TABLE[name], backend=backend, flatten=flatten)).close()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "fp64"])
@pytest.mark.parametrize(
    "changed",
    [{"lr": 1e-3 * (1 + 1e-4)}, {"betas": (0.9, 0.999 - 1e-5)}, {"betas": (0.9 - 1e-4, 0.999)}, {"weight_decay": 1e-3}],
    ids=["lr", "beta2", "beta1", "weight_decay"],
)
def test_radam_with_a_slightly_other_hyperparameter_is_noticed(changed: dict, dtype: torch.dtype) -> None:
    """The negative control of `test_radam`."""
    assert not fifty_steps(Pair({}, dtype=dtype, **changed)).close()


@pytest.mark.sampled
@pytest.mark.parametrize("decoupled", [False, True], ids=["Adam", "AdamW"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "fp64"])
@pytest.mark.parametrize("options", ADAM_TABLE.values(), ids=ADAM_TABLE)
@pytest.mark.parametrize(("backend", "flatten"), RUNS, ids=run_id)
def test_no_rectification(backend: str, flatten: bool, options: dict, dtype: torch.dtype, decoupled: bool) -> None:
    pair = fifty_steps(
        Pair(
            {"weight_decay": 0.0, **options},
            torch.optim.AdamW if decoupled else torch.optim.Adam,
            backend=backend,
            flatten=flatten,
            dtype=dtype,
            rectification="none",
            decoupled_weight_decay=decoupled,
        )
    )
    assert pair.close()
    assert pair.same_steps()


@pytest.mark.parametrize(
    "changed",
    [{"rectification": "first_order"}, {"lr": 1e-3 * (1 + 1e-4)}, {"betas": (0.9, 0.999 - 1e-5)}, {"eps": 1e-6}],
    ids=["rectification", "lr", "beta2", "eps"],
)
def test_no_rectification_with_a_slightly_other_hyperparameter_is_noticed(changed: dict) -> None:
    """The negative control of `test_no_rectification`."""
    pair = Pair({}, torch.optim.Adam, **{"rectification": "none", **changed})
    assert not fifty_steps(pair).close()


def test_the_two_weight_decays_differ() -> None:
    """Another: Adam's decay is not AdamW's."""
    pair = Pair({"weight_decay": 0.1}, torch.optim.AdamW, rectification="none", decoupled_weight_decay=False)
    assert not fifty_steps(pair).close()


@pytest.mark.parametrize(("backend", "flatten"), [*RUNS, TRITON_RUN], ids=run_id)
def test_groups_with_their_own_hyperparameters(backend: str, flatten: bool) -> None:
    assert fifty_steps(Pair(group_options=GROUPS, backend=backend, flatten=flatten)).close()


def test_betas_given_as_a_list() -> None:
    """As they come from a JSON or YAML file."""
    groups = [{"betas": [0.8, 0.99]}, {"betas": [0.9, 0.999], "lr": 1e-2}]
    assert fifty_steps(Pair({"betas": [0.9, 0.99]}, group_options=groups)).close()


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]] = {
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, step_size=7, gamma=0.5),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, T_max=30),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, max_lr=1e-2, total_steps=51),
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda t: min(1.0, (t + 1) / 20)),
}


@pytest.mark.parametrize("flatten", [False, True], ids=run_id)
@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS)
def test_scheduler(schedule: Callable, flatten: bool) -> None:
    pair = Pair(group_options=GROUPS, flatten=flatten)
    schedulers = [schedule(opt) for opt in pair.opts]
    seen = set()
    for _ in range(50):
        pair.step()
        for scheduler in schedulers:
            scheduler.step()
        seen.add((pair.own_opt.param_groups[0]["lr"], pair.own_opt.param_groups[0]["betas"]))
    assert pair.close()
    assert len(seen) > 5


def test_scheduler_on_one_side_only_is_noticed() -> None:
    """The negative control of `test_scheduler`."""
    pair = Pair(group_options=GROUPS)
    scheduler = SCHEDULERS["StepLR"](pair.own_opt)
    for _ in range(50):
        pair.step()
        scheduler.step()
    assert not pair.close()


@pytest.mark.parametrize("flatten", [False, True], ids=run_id)
def test_tensor_lr_is_read_every_step(flatten: bool) -> None:
    """In two groups, one of which has its own."""
    pair = Pair(
        {"lr": torch.tensor(2e-3)}, group_options=[{}, {"lr": torch.tensor([1e-3])}], flatten=flatten, foreach=None
    )
    for t in range(50):
        pair.step()
        for opt in pair.opts:
            for group in opt.param_groups:
                group["lr"].fill_(1e-3 / (1 + t % 5))
    assert pair.close()
