"""The trajectories of torch.optim's RAdam, Adam and AdamW, parameter by parameter and step by step.

torch's lines in float32 are not this package's (docs/design.md, the numeric contract), so float32 is judged by a run in
float64 from the same numbers: this package has to be at it, and no further from torch than torch is from it. In float64
both are compared with each other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from radam_fused import FusedRAdam

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
"""The largest deviation allowed, relative to the largest value of the parameter."""
TORCH = 2e-5
"""Further than this torch's own float32 is never from float64 here: so close it stays a judge."""

SHAPES = [(7, 5), (), (1,), (0,), (257,), (2, 3, 4, 5), (33, 17)]

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
RUNS = [("cpu", False), ("cpu", True), ("reference", False)]
"""Backend and flatten."""
TRITON_RUN = ("triton", True)
"""Interpreted, the Triton kernel is quick only where all parameters make one segment; it joins in a few tests."""


def run_id(value: object) -> str | None:
    return {True: "flatten", False: "apart"}.get(value) if isinstance(value, bool) else None


SAME_AS: dict[type[torch.optim.Optimizer], dict[str, Any]] = {
    torch.optim.RAdam: {},
    torch.optim.Adam: {"rectification": "none"},
    torch.optim.AdamW: {"rectification": "none", "decoupled_weight_decay": True},
}
"""The options that make FusedRAdam each of these."""


class Twins:
    """The same parameters under FusedRAdam (``own``), an optimizer of torch (``other``), and in float64 (``exact``)."""

    def __init__(
        self,
        options: dict[str, Any] | None = None,
        other: type[torch.optim.Optimizer] = torch.optim.RAdam,
        other_options: dict[str, Any] | None = None,
        *,
        backend: str = "cpu",
        flatten: bool = False,
        dtype: torch.dtype = torch.float32,
        shapes: Iterable[tuple[int, ...]] = SHAPES,
        group_options: list[dict[str, Any]] | None = None,
        **own_options: Any,
    ) -> None:
        self.generator = torch.Generator().manual_seed(7)
        self.dtype = dtype
        device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
        values = [self.noise(shape, 0.1) for shape in shapes]
        self.own = [nn.Parameter(v.to(device, copy=True)) for v in values]
        self.other = [nn.Parameter(v.to(device, copy=True)) for v in values]
        self.exact = [nn.Parameter(v.to(device, torch.float64)) for v in values]
        options = options or {}
        self.own_opt = FusedRAdam(
            self.groups(self.own, group_options), backend=backend, flatten=flatten, **{**options, **own_options}
        )
        self.other_opt = other(
            self.groups(self.other, group_options), **(options if other_options is None else other_options)
        )
        self.exact_opt = FusedRAdam(
            self.groups(self.exact, group_options), backend="reference", **{**options, **SAME_AS[other]}
        )

    @property
    def opts(self) -> tuple[torch.optim.Optimizer, ...]:
        return self.own_opt, self.other_opt, self.exact_opt

    @staticmethod
    def groups(params: list[nn.Parameter], options: list[dict[str, Any]] | None) -> Any:
        """The parameters dealt out over groups with these options."""
        if options is None:
            return params
        return [{"params": params[i :: len(options)], **copy.deepcopy(option)} for i, option in enumerate(options)]

    def noise(self, shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=self.generator, dtype=torch.float64)).to(self.dtype)

    def step(self, missing: Iterable[int] = ()) -> None:
        """One step of both from the same noise, parameter by parameter of another size; some get no gradient.

        The noise is larger than what a coupled decay adds: where the two nearly cancel, Adam's first step, which has
        the size of lr whatever the gradient's, would show their rounding errors enlarged.
        """
        for i, (p, q, r) in enumerate(zip(self.own, self.other, self.exact, strict=True)):
            if i in missing:
                p.grad = q.grad = r.grad = None
                continue
            grad = self.noise(tuple(p.shape), 10.0 ** (i % 4 - 1)).to(p.device)
            q.grad, r.grad = grad.clone(), grad.double()
            if p.grad is None:
                p.grad = grad
            else:
                p.grad.copy_(grad)
        for opt in self.opts:
            opt.step()

    @staticmethod
    def error(params: list[nn.Parameter], truth: list[nn.Parameter]) -> float:
        """The largest deviation of a parameter, relative to its largest value."""
        errors = [((p - q).abs().max() / q.abs().max()).item() for p, q in zip(params, truth, strict=True) if q.numel()]
        assert all(error == error for error in errors)
        return max(errors)

    def same_steps(self) -> bool:
        own = [self.own_opt.state.get(p, {}).get("step", 0) for p in self.own]
        return own == [self.other_opt.state.get(q, {}).get("step", 0) for q in self.other]

    def close(self) -> bool:
        tolerance = TOLERANCE[self.dtype]
        if self.dtype == torch.float64:
            return self.error(self.own, self.other) < tolerance
        torchs = self.error(self.other, self.exact)
        assert torchs < TORCH
        return self.error(self.own, self.exact) < tolerance and self.error(self.own, self.other) < tolerance + torchs


def fifty_steps(twins: Twins) -> Twins:
    for _ in range(50):
        twins.step()
    return twins


# torch's own table.


@pytest.mark.parametrize("foreach", [False, True], ids=["for-loop", "foreach"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "fp64"])
@pytest.mark.parametrize("options", RADAM_TABLE.values(), ids=RADAM_TABLE)
@pytest.mark.parametrize(("backend", "flatten"), RUNS, ids=run_id)
def test_radam(backend: str, flatten: bool, options: dict, dtype: torch.dtype, foreach: bool) -> None:
    options = {**options, "foreach": foreach}
    twins = fifty_steps(Twins(options, backend=backend, flatten=flatten, dtype=dtype))
    assert twins.close()
    assert twins.same_steps()


@pytest.mark.parametrize("name", ["default", "decoupled_weight_decay", "maximize"])
def test_radam_on_triton(name: str) -> None:
    backend, flatten = TRITON_RUN
    assert fifty_steps(Twins(RADAM_TABLE[name], backend=backend, flatten=flatten)).close()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "fp64"])
@pytest.mark.parametrize(
    "changed",
    [{"lr": 1e-3 * (1 + 1e-4)}, {"betas": (0.9, 0.999 - 1e-5)}, {"betas": (0.9 - 1e-4, 0.999)}, {"weight_decay": 1e-3}],
    ids=["lr", "beta2", "beta1", "weight_decay"],
)
def test_radam_with_a_slightly_other_hyperparameter_is_noticed(changed: dict, dtype: torch.dtype) -> None:
    """The negative control of `test_radam`."""
    assert not fifty_steps(Twins({}, dtype=dtype, **changed)).close()


@pytest.mark.parametrize("decoupled", [False, True], ids=["Adam", "AdamW"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "fp64"])
@pytest.mark.parametrize("options", ADAM_TABLE.values(), ids=ADAM_TABLE)
@pytest.mark.parametrize(("backend", "flatten"), RUNS, ids=run_id)
def test_no_rectification(backend: str, flatten: bool, options: dict, dtype: torch.dtype, decoupled: bool) -> None:
    twins = fifty_steps(
        Twins(
            {"weight_decay": 0.0, **options},
            torch.optim.AdamW if decoupled else torch.optim.Adam,
            backend=backend,
            flatten=flatten,
            dtype=dtype,
            rectification="none",
            decoupled_weight_decay=decoupled,
        )
    )
    assert twins.close()
    assert twins.same_steps()


@pytest.mark.parametrize(
    "changed",
    [{"rectification": "first_order"}, {"lr": 1e-3 * (1 + 1e-4)}, {"betas": (0.9, 0.999 - 1e-5)}, {"eps": 1e-6}],
    ids=["rectification", "lr", "beta2", "eps"],
)
def test_no_rectification_with_a_slightly_other_hyperparameter_is_noticed(changed: dict) -> None:
    """The negative control of `test_no_rectification`."""
    twins = Twins({}, torch.optim.Adam, **{"rectification": "none", **changed})
    assert not fifty_steps(twins).close()


def test_the_two_weight_decays_differ() -> None:
    """Another: Adam's decay is not AdamW's."""
    twins = Twins({"weight_decay": 0.1}, torch.optim.AdamW, rectification="none", decoupled_weight_decay=False)
    assert not fifty_steps(twins).close()


# Several groups, and learning rates that change.

GROUPS = [
    {"lr": 3e-3},
    {"betas": (0.8, 0.99), "weight_decay": 0.05},
    {"eps": 1e-5, "maximize": True, "weight_decay": 0.1, "decoupled_weight_decay": True},
]


@pytest.mark.parametrize(("backend", "flatten"), [*RUNS, TRITON_RUN], ids=run_id)
def test_groups_with_their_own_hyperparameters(backend: str, flatten: bool) -> None:
    assert fifty_steps(Twins(group_options=GROUPS, backend=backend, flatten=flatten)).close()


def test_betas_given_as_a_list() -> None:
    """As they come from a JSON or YAML file."""
    groups = [{"betas": [0.8, 0.99]}, {"betas": [0.9, 0.999], "lr": 1e-2}]
    assert fifty_steps(Twins({"betas": [0.9, 0.99]}, group_options=groups)).close()


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]] = {
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, step_size=7, gamma=0.5),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, T_max=30),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, max_lr=1e-2, total_steps=51),
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda t: min(1.0, (t + 1) / 20)),
}


@pytest.mark.parametrize("flatten", [False, True], ids=run_id)
@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS)
def test_scheduler(schedule: Callable, flatten: bool) -> None:
    twins = Twins(group_options=GROUPS, flatten=flatten)
    schedulers = [schedule(opt) for opt in twins.opts]
    seen = set()
    for _ in range(50):
        twins.step()
        for scheduler in schedulers:
            scheduler.step()
        seen.add((twins.own_opt.param_groups[0]["lr"], twins.own_opt.param_groups[0]["betas"]))
    assert twins.close()
    assert len(seen) > 5


def test_scheduler_on_one_side_only_is_noticed() -> None:
    """The negative control of `test_scheduler`."""
    twins = Twins(group_options=GROUPS)
    scheduler = SCHEDULERS["StepLR"](twins.own_opt)
    for _ in range(50):
        twins.step()
        scheduler.step()
    assert not twins.close()


@pytest.mark.parametrize("flatten", [False, True], ids=run_id)
def test_tensor_lr_is_read_every_step(flatten: bool) -> None:
    """In two groups, one of which has its own."""
    twins = Twins(
        {"lr": torch.tensor(2e-3)}, group_options=[{}, {"lr": torch.tensor([1e-3])}], flatten=flatten, foreach=None
    )
    for t in range(50):
        twins.step()
        for opt in twins.opts:
            for group in opt.param_groups:
                group["lr"].fill_(1e-3 / (1 + t % 5))
    assert twins.close()


# Gradients that come, go and come late: a parameter counts its own steps.


@pytest.mark.parametrize(("backend", "flatten"), [*RUNS, TRITON_RUN], ids=run_id)
def test_frozen_in_steps_3_and_4(backend: str, flatten: bool) -> None:
    """Such a parameter rectifies two steps later than the others (its t is 6 in step 8)."""
    twins = Twins(backend=backend, flatten=flatten)
    for t in range(1, 21):
        twins.step(missing=(0, 4) if t in (3, 4) else ())
        assert twins.same_steps()
    assert twins.close()
    assert [int(twins.own_opt.state[p]["step"]) for p in twins.own] == [18, 20, 20, 20, 18, 20, 20]


def test_one_step_more_or_less_is_noticed() -> None:
    """The negative control of the per-parameter steps: one count off by one, right after the branch."""
    twins = Twins()
    for t in range(1, 13):
        twins.step()
        if t == 5:
            twins.own_opt.state[twins.own[3]]["step"].add_(1)  # an empty parameter: nothing to see
            twins.own_opt.state[twins.own[4]]["step"].sub_(1)
    assert not twins.same_steps()
    assert not twins.close()


@pytest.mark.parametrize("flatten", [False, True], ids=run_id)
def test_late_first_gradients(flatten: bool) -> None:
    """No gradient for anyone in the first step, for two until the fifth, for one until the ninth."""
    twins = Twins(flatten=flatten)
    everyone = range(len(SHAPES))
    for t in range(1, 21):
        twins.step(missing=everyone if t == 1 else (0, 5) if t < 5 else (0,) if t < 9 else ())
        assert twins.same_steps()
    assert twins.close()


@pytest.mark.parametrize("flatten", [False, True], ids=run_id)
def test_a_gradient_only_now_and_then(flatten: bool) -> None:
    """As the experts of a mixture get them: in every step another set, sometimes none at all."""
    twins = Twins(flatten=flatten, group_options=GROUPS)
    for t in range(1, 51):
        twins.step(missing=[i for i in range(len(SHAPES)) if t % (i + 2) == 0 or t % 11 == 0])
        assert twins.same_steps()
    assert twins.close()


@pytest.mark.parametrize("flatten", [False, True], ids=run_id)
@pytest.mark.parametrize("when", [0, 8], ids=["before_the_first_step", "after_8_steps"])
def test_group_added_later(when: int, flatten: bool) -> None:
    twins = Twins(flatten=flatten)
    for _ in range(when):
        twins.step()
    late = [twins.noise(shape, 0.1) for shape in [(5, 4), (300,)]]
    for params, opt in zip((twins.own, twins.other, twins.exact), twins.opts, strict=True):
        added = [nn.Parameter(v.clone().to(params[0].dtype)) for v in late]
        opt.add_param_group({"params": added, "lr": 5e-3, "weight_decay": 0.1})
        params += added
    for _ in range(12):
        twins.step()
    assert twins.close()
    assert twins.same_steps()


# Real models: autograd makes the gradients.


def small_model(seed: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 2)).double()


def batch(t: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(t)
    x = torch.randn(12, 6, generator=generator, dtype=torch.float64)
    return x, torch.stack([x.sum(1), x.sin().sum(1)], 1)


def relative_error(a: nn.Module, b: nn.Module) -> float:
    return max(
        ((p - q).abs().max() / q.abs().max()).item() for p, q in zip(a.parameters(), b.parameters(), strict=True)
    )


@pytest.mark.parametrize("flatten", [False, True], ids=run_id)
@pytest.mark.parametrize("set_to_none", [True, False], ids=["set_to_none", "set_to_zero"])
def test_training_loop(set_to_none: bool, flatten: bool) -> None:
    models = small_model(), small_model()
    opts = (
        FusedRAdam(models[0].parameters(), lr=3e-2, flatten=flatten),
        torch.optim.RAdam(models[1].parameters(), lr=3e-2),
    )
    losses = []
    for _ in range(50):
        x, y = batch(0)
        for model, opt in zip(models, opts, strict=True):
            opt.zero_grad(set_to_none=set_to_none)
            loss = (model(x) - y).square().mean()
            loss.backward()
            opt.step()
        losses.append(loss.item())
    assert relative_error(*models) < 1e-11
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("flatten", [False, True], ids=run_id)
def test_gradients_that_accumulate(flatten: bool) -> None:
    """zero_grad every third step only."""
    models = small_model(), small_model()
    opts = FusedRAdam(models[0].parameters(), flatten=flatten), torch.optim.RAdam(models[1].parameters())
    for t in range(18):
        x, y = batch(t)
        for model, opt in zip(models, opts, strict=True):
            if t % 3 == 0:
                opt.zero_grad()
            (model(x) - y).square().mean().backward()
            opt.step()
    assert relative_error(*models) < 1e-11


@pytest.mark.parametrize("flatten", [False, True], ids=run_id)
def test_closure(flatten: bool) -> None:
    """Gradients are recorded in the closure whatever the caller's mode, and step returns its loss."""
    models = small_model(), small_model()
    opts = FusedRAdam(models[0].parameters(), flatten=flatten), torch.optim.RAdam(models[1].parameters())
    modes = []

    def losses(t: int) -> list[float]:
        x, y = batch(t)
        found = []
        for model, opt in zip(models, opts, strict=True):

            def closure(model: nn.Module = model, opt: torch.optim.Optimizer = opt) -> Tensor:
                modes.append(torch.is_grad_enabled())
                opt.zero_grad()
                loss = (model(x) - y).square().mean()
                loss.backward()
                return loss

            with torch.no_grad():
                found.append(opt.step(closure).item())
        return found

    for t in range(20):
        own, other = losses(t)
        assert own == pytest.approx(other, rel=1e-12)
    assert modes == [True] * 40
    assert relative_error(*models) < 1e-11


def test_step_without_a_closure_returns_none() -> None:
    twins = Twins()
    twins.step()
    assert twins.own_opt.step() is None
