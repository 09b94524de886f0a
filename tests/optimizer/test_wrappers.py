"""Wrappers and averages of weights, written as users write them, beside the same around torch.optim.RAdam."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

from radam_fused import FusedRAdam

STEPS = 14
HYPER: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}
OPTIONS: dict[str, dict[str, Any]] = {"plain": {}, "flatten": {"flatten": True}, "int8": {"state_dtype": torch.int8}}
Make = Callable[[Any], torch.optim.Optimizer]


@pytest.fixture(autouse=True)
def _one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Tanh(), nn.Linear(64, 64))


def batch(t: int) -> Tensor:
    return torch.randn(16, 64, generator=torch.Generator().manual_seed(t))


def backward(model: nn.Module, t: int) -> None:
    (model(batch(t)) - batch(t)).square().mean().backward()


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def plain(make: Make, steps: int = STEPS) -> list[Tensor]:
    """What the others have to differ from."""
    model = net()
    optimizer = make(model.parameters())
    for t in range(steps):
        backward(model, t)
        optimizer.step()
        optimizer.zero_grad()
    return weights(model)


def lookahead(make: Make) -> list[Tensor]:
    """Slow weights follow the fast ones every five steps (Zhang et al., 2019)."""
    model = net()
    optimizer, slow = make(model.parameters()), weights(model)
    for t in range(STEPS):
        backward(model, t)
        optimizer.step()
        optimizer.zero_grad()
        if t % 5 == 4:
            with torch.no_grad():
                for p, q in zip(model.parameters(), slow, strict=True):
                    q.lerp_(p, 0.5)
                    p.copy_(q)
    return weights(model)


def sam(make: Make) -> list[Tensor]:
    """The gradient of the weights' worst neighbour (Foret et al., 2021)."""
    model = net()
    optimizer = make(model.parameters())
    for t in range(STEPS):
        backward(model, t)
        before = weights(model)
        with torch.no_grad():
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            for p in model.parameters():
                if p.grad is not None:
                    p.add_(p.grad, alpha=0.5 / float(norm))
        optimizer.zero_grad()
        backward(model, t)
        with torch.no_grad():
            for p, q in zip(model.parameters(), before, strict=True):
                p.copy_(q)
        optimizer.step()
        optimizer.zero_grad()
    return weights(model)


def swa(make: Make) -> list[Tensor]:
    """torch's own average of the weights, with its rate and its pass for the statistics of norms."""
    model = net()
    optimizer, average = make(model.parameters()), AveragedModel(model)
    schedule = SWALR(optimizer, 0.002, 3)
    for t in range(STEPS):
        backward(model, t)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if t >= 6:
            average.update_parameters(model)
    update_bn((batch(t) for t in range(3)), average)
    return weights(average)


def ema(make: Make) -> list[Tensor]:
    """An exponential average, by torch's foreach operators."""
    model = net()
    optimizer, average = make(model.parameters()), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    for t in range(STEPS):
        backward(model, t)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
    return weights(average)


def post_local_sgd(make: Make) -> list[Tensor]:
    """torch's own: ranks average their weights now and then."""
    model = net()
    optimizer = PostLocalSGDOptimizer(make(model.parameters()), PeriodicModelAverager(period=2, warmup_steps=2))
    for t in range(STEPS):
        if t == STEPS // 2:  # goes on from a checkpoint of its own
            saved = optimizer.state_dict()
            optimizer = PostLocalSGDOptimizer(make(model.parameters()), PeriodicModelAverager(2, 2))
            optimizer.load_state_dict(saved)
        backward(model, t)
        optimizer.step()
        optimizer.zero_grad()
    return weights(model)


def larc(make: Make) -> list[Tensor]:
    """apex's: gradients scaled layer by layer, with the decay added to them and kept from the step."""
    model = net()
    optimizer = make(model.parameters())
    for t in range(STEPS):
        backward(model, t)
        decays = [group["weight_decay"] for group in optimizer.param_groups]
        with torch.no_grad():
            for group, decay in zip(optimizer.param_groups, decays, strict=True):
                group["weight_decay"] = 0.0
                for p in group["params"]:
                    size, slope = float(p.norm()), float(p.grad.norm())
                    if size and slope:
                        rate = min(0.02 * size / (slope + size * decay + 1e-8) / group["lr"], 1.0)
                        p.grad.add_(p, alpha=decay).mul_(rate)
        optimizer.step()
        optimizer.zero_grad()
        for group, decay in zip(optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay
    return weights(model)


def in_backward(make: Make) -> list[Tensor]:
    """torchtune's optimizer_in_bwd: an optimizer for each parameter, stepped by a hook, saved by name."""
    model = net()

    def hooked() -> dict[str, torch.optim.Optimizer]:
        optimizers = {p: make([p]) for p in model.parameters()}

        def step(p: Tensor) -> None:
            optimizers[p].step()
            optimizers[p].zero_grad()

        hooks.extend(p.register_post_accumulate_grad_hook(step) for p in model.parameters())
        return {name: optimizers[p] for name, p in model.named_parameters()}

    hooks: list[Any] = []
    named = hooked()
    for t in range(STEPS):
        if t == STEPS // 2:
            saved = {name: optimizer.state_dict() for name, optimizer in named.items()}
            for hook in hooks:
                hook.remove()
            named = hooked()
            for name, optimizer in named.items():
                optimizer.load_state_dict(saved[name])
        backward(model, t)
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    return weights(model)


WRAPPERS = (lookahead, sam, swa, ema, post_local_sgd, larc, in_backward)


def close(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> bool:
    return all(float((a - b).abs().max()) <= tolerance for a, b in zip(ours, theirs, strict=True))


TRIED = [(wrapper, o) for wrapper in WRAPPERS for o in OPTIONS if (wrapper, o) != (post_local_sgd, "flatten")]


@pytest.mark.parametrize(("wrapper", "option"), TRIED, ids=lambda x: getattr(x, "__name__", x))
def test_as_around_torch_s_own(wrapper: Callable[[Make], list[Tensor]], option: str) -> None:
    ours = wrapper(lambda params: FusedRAdam(params, **HYPER, **OPTIONS[option]))
    theirs = wrapper(lambda params: torch.optim.RAdam(params, **HYPER))
    assert close(ours, theirs, 5e-3 if option == "int8" else 5e-5)


@pytest.mark.parametrize("wrapper", [f for f in WRAPPERS if f not in (in_backward, post_local_sgd)])
def test_a_wrapper_does_something(wrapper: Callable[[Make], list[Tensor]]) -> None:
    """The negative control: without it the weights are others by more than the tolerances."""

    def make(params: Any) -> torch.optim.Optimizer:
        return FusedRAdam(params, **HYPER)

    assert not close(wrapper(make), plain(make), 5e-3)


def test_post_local_sgd_refuses_flat_buffers() -> None:
    """torch's averager gives each parameter other memory, ``p.data = ``: an error of the next step says so."""
    with pytest.raises(RuntimeError, match="use flatten=False"):
        post_local_sgd(lambda params: FusedRAdam(params, **HYPER, flatten=True))


def test_a_wrapper_that_replaces_the_memory_of_parameters() -> None:
    """SAM as some write it, ``p.data = saved``: right without flat buffers, and with them an error that says so."""
    for flatten in (False, True):
        model = net()
        optimizer = FusedRAdam(model.parameters(), **HYPER, flatten=flatten)
        backward(model, 0)
        for p in model.parameters():
            p.data = p.data.clone()
        if flatten:
            with pytest.raises(RuntimeError, match="use flatten=False"):
                optimizer.step()
        else:
            optimizer.step()
            assert close(weights(model), plain(lambda params: FusedRAdam(params, **HYPER), 1), 0.0)
