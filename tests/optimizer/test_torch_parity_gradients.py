"""Against torch where gradients come late, are missing or accumulate, and in training loops with autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam
from tests.support.torch_pairs import GROUPS, RUNS, SHAPES, TRITON_RUN, Pair, run_id


@pytest.mark.parametrize(("backend", "flatten"), [*RUNS, TRITON_RUN], ids=run_id)
def test_frozen_in_steps_3_and_4(backend: str, flatten: bool) -> None:
    """Such a parameter rectifies two steps later than the others (its t is 6 in step 8)."""
    pair = Pair(backend=backend, flatten=flatten)
    for t in range(1, 21):
        pair.step(missing=(0, 4) if t in (3, 4) else ())
        assert pair.same_steps()
    assert pair.close()
    assert [int(pair.own_opt.state[p]["step"]) for p in pair.own] == [18, 20, 20, 20, 18, 20, 20]


def test_one_step_more_or_less_is_noticed() -> None:
    """The negative control of the per-parameter steps: one count off by one, right after the branch."""
    pair = Pair()
    for t in range(1, 13):
        pair.step()
        if t == 5:
            pair.own_opt.state[pair.own[3]]["step"].add_(1)  # an empty parameter: nothing to see
            pair.own_opt.state[pair.own[4]]["step"].sub_(1)
    assert not pair.same_steps()
    assert not pair.close()


@pytest.mark.parametrize("flatten", [False, True], ids=run_id)
def test_late_first_gradients(flatten: bool) -> None:
    """No gradient for anyone in the first step, for two until the fifth, for one until the ninth."""
    pair = Pair(flatten=flatten)
    everyone = range(len(SHAPES))
    for t in range(1, 21):
        pair.step(missing=everyone if t == 1 else (0, 5) if t < 5 else (0,) if t < 9 else ())
        assert pair.same_steps()
    assert pair.close()


@pytest.mark.parametrize("flatten", [False, True], ids=run_id)
def test_a_gradient_only_now_and_then(flatten: bool) -> None:
    """As the experts of a mixture get them: in every step another set, sometimes none at all."""
    pair = Pair(flatten=flatten, group_options=GROUPS)
    for t in range(1, 51):
        pair.step(missing=[i for i in range(len(SHAPES)) if t % (i + 2) == 0 or t % 11 == 0])
        assert pair.same_steps()
    assert pair.close()


@pytest.mark.parametrize("flatten", [False, True], ids=run_id)
@pytest.mark.parametrize("when", [0, 8], ids=["before_the_first_step", "after_8_steps"])
def test_group_added_later(when: int, flatten: bool) -> None:
    pair = Pair(flatten=flatten)
    for _ in range(when):
        pair.step()
    late = [pair.noise(shape, 0.1) for shape in [(5, 4), (300,)]]
    for params, opt in zip((pair.own, pair.other, pair.exact), pair.opts, strict=True):
        added = [nn.Parameter(v.clone().to(params[0].dtype)) for v in late]
        opt.add_param_group({"params": added, "lr": 5e-3, "weight_decay": 0.1})
        params += added
    for _ in range(12):
        pair.step()
    assert pair.close()
    assert pair.same_steps()


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
    pair = Pair()
    pair.step()
    assert pair.own_opt.step() is None
