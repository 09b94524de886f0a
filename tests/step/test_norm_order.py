"""The norm's bits do not depend on how the parameters came to their buckets: a resumed run goes on as it would have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam
from tests.support.helpers import all_same_bits

# Squares of float64 are rounded, and so are their sums: in another order they have other bits.
SHAPES = (3000,), (50, 41), (2500,), (777,)
OPTIONS: dict[str, Any] = {"lr": 0.1, "max_grad_norm": 0.5}
backends = pytest.mark.parametrize("backend", ["cpu", "reference"])


def model(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in SHAPES]


def give(params: list[nn.Parameter], t: int, present: tuple[int, ...] = (0, 1, 2, 3)) -> None:
    generator = torch.Generator().manual_seed(100 + t)
    for k, p in enumerate(params):
        grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        p.grad = grad if k in present else None


def run(opt: FusedRAdam, params: list[nn.Parameter], steps: range) -> list[Tensor]:
    norms = []
    for t in steps:
        give(params, t)
        opt.step()
        norms.append(opt.last_grad_norm)
    return norms


def unfrozen_later(backend: str, dtype: torch.dtype) -> tuple[list[nn.Parameter], FusedRAdam]:
    """The first and third parameter are trained from the third step on."""
    params = model(dtype)
    opt = FusedRAdam(params, backend=backend, **OPTIONS)
    for p in params[::2]:
        p.requires_grad_(False)
    for t in range(3):
        give(params, t, (1, 3))
        opt.step()
    for p in params[::2]:
        p.requires_grad_(True)
    return params, opt


@backends
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_a_resumed_run_goes_on_after_parameters_were_unfrozen(backend: str, dtype: torch.dtype) -> None:
    params, opt = unfrozen_later(backend, dtype)
    run(opt, params, range(3, 6))
    assert len(opt._bucket_manager.buckets) == 2
    others = [nn.Parameter(p.detach().clone()) for p in params]
    resumed = FusedRAdam(others, backend=backend, **OPTIONS)
    resumed.load_state_dict(opt.state_dict())
    assert len(resumed._bucket_manager.buckets) == 1
    norms = run(opt, params, range(6, 36)), run(resumed, others, range(6, 36))
    assert all_same_bits(*norms)
    assert all_same_bits(params, others)


@backends
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_flat_buffers_change_no_bit(backend: str, dtype: torch.dtype) -> None:
    """Though a step takes neighbours in the buffers as one."""
    both = [(params := model(dtype), FusedRAdam(params, backend=backend, flatten=f, **OPTIONS)) for f in (False, True)]
    norms = [run(opt, params, range(30)) for params, opt in both]
    assert all_same_bits(*norms)
    assert all_same_bits(*(params for params, _ in both))


def test_a_gradient_that_was_replaced_is_in_the_norm() -> None:
    """Flat gradients do not move, so their addresses are read once; a new one is first copied to its place."""
    params = model()
    opt = FusedRAdam(params, flatten=True, **OPTIONS)
    for t in range(4):
        give(params, t)
        expected = torch.cat([p.grad.flatten() for p in params]).norm().item()
        opt.step()
        assert opt.last_grad_norm.item() == pytest.approx(expected, rel=1e-12)


def test_the_order_of_additions_matters() -> None:
    """The negative control: the same gradients in another order have norms of other bits."""
    norms = []
    for order in (1, -1):
        params = model()
        opt = FusedRAdam(params[::order], **OPTIONS)
        norms.append(run(opt, params, range(30)))
    assert not all_same_bits(*norms)


@backends
def test_state_that_user_code_has_replaced_changes_no_order(backend: str) -> None:
    """Its bucket is made again, but does not come behind the others."""
    runs = []
    for replaces in (False, True):
        params = model()
        for k, dtype in ((1, torch.float32), (3, torch.bfloat16)):  # of two buckets the order would not matter
            params[k] = nn.Parameter(params[k].detach().to(dtype))
        opt = FusedRAdam(params, backend=backend, **OPTIONS)
        run(opt, params, range(2))
        if replaces:
            opt.state[params[0]] = {name: value.clone() for name, value in opt.state[params[0]].items()}
        runs.append(run(opt, params, range(2, 32)))
    assert all_same_bits(*runs)


def test_a_compiled_step_adds_in_the_same_order() -> None:
    runs = []
    for compiles in (False, True):
        torch._dynamo.reset()
        params, opt = unfrozen_later("cpu", torch.float64)
        step = torch.compile(lambda opt=opt: opt.step(), backend="eager", fullgraph=True) if compiles else opt.step
        norms = []
        for t in range(3, 33):
            give(params, t)
            step()
            norms.append(opt.last_grad_norm.clone())
        runs.append(norms)
    assert all_same_bits(*runs)


@backends
@pytest.mark.parametrize("flatten", [False, True], ids=["tensors", "flatten"])
def test_a_step_without_a_gradient_does_nothing(backend: str, flatten: bool) -> None:
    params = model()
    opt = FusedRAdam(params, backend=backend, flatten=flatten, **OPTIONS)
    opt.step()
    run(opt, params, range(2))
    before = [p.detach().clone() for p in params]
    opt.zero_grad()
    for p in params:
        p.grad = None
    opt.step()
    assert all_same_bits(params, before)
