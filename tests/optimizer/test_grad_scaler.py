"""What `torch.amp.GradScaler` finds after a step: gradients as `unscale_` leaves them; and wrapped optimizers."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import radam_fused.optimizer
from radam_fused import FusedRAdam
from tests.support.helpers import noise, same_bits

SHAPES = [(33, 17), (), (0,), (5000,)]
ODD = 1234.5
"""A scale whose inverse rounds."""


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(5)
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in SHAPES]


def give(params: list[nn.Parameter], t: int, scale: float, *, infinite: bool = False) -> None:
    for k, p in enumerate(params):
        real = noise(20_000)[(7919 * t + 131 * k) % 9_000 :][: p.numel()].reshape(p.shape)
        p.grad = (real * scale).to(p.dtype)
    if infinite:
        grad = params[-1].grad
        assert grad is not None
        grad[7] = torch.inf


def scaler_of(scale: float) -> torch.amp.GradScaler:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    scaler.scale(torch.zeros(()))
    return scaler


def unscaled(params: list[nn.Parameter], scale: float) -> list[Tensor]:
    """What `unscale_` leaves of these gradients."""
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    for copy, p in zip(copies, params, strict=True):
        copy.grad = None if p.grad is None else p.grad.clone()
    scaler_of(scale).unscale_(torch.optim.SGD(copies, lr=0.1))
    return [copy.grad for copy in copies if copy.grad is not None]


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "flatten": {"flatten": True},
    "capturable": {"capturable": True},
    "clip": {"max_grad_norm": 0.25},
    "int8": {"state_dtype": torch.int8},
    "bfloat16": {"state_dtype": torch.bfloat16},
    "offload": {"offload": True},
}
DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}


@pytest.mark.sampled
@pytest.mark.parametrize("infinite", [False, True], ids=["finite", "infinite"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_gradients_are_left_unscaled(configuration: str, dtype: torch.dtype, infinite: bool, backend: str) -> None:
    """Bit for bit as unscale_ does it, in a skipped step too, and neither clipped nor twice."""
    options = CONFIGURATIONS[configuration]
    if "offload" in options:
        backend = "auto"
    if "state_dtype" in options and dtype == torch.float64:
        dtype = torch.float32
    params = parameters(dtype)
    opt = FusedRAdam(params, backend=backend, **options)
    scaler = scaler_of(ODD)
    for t in range(2):
        give(params, t, ODD, infinite=infinite and t == 1)
        scaled = [p.grad.clone() for p in params if p.grad is not None]
        expected = unscaled(params, ODD)
        scaler.step(opt)
        assert all(same_bits(p.grad, grad) for p, grad in zip(params, expected, strict=True) if p.grad is not None)
        assert not all(same_bits(p.grad, grad) for p, grad in zip(params, scaled, strict=True) if p.grad is not None)
        scaler._per_optimizer_states.clear()
    assert float(opt.state[params[0]]["step"]) == 2 - infinite


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.25}], ids=["", "clip"])
def test_what_was_unscaled_already_stays(options: dict[str, Any]) -> None:
    params = parameters()
    opt = FusedRAdam(params, **options)
    scaler = scaler_of(ODD)
    give(params, 0, ODD)
    expected = unscaled(params, ODD)
    scaler.unscale_(opt)
    scaler.step(opt)
    assert all(same_bits(p.grad, grad) for p, grad in zip(params, expected, strict=True) if p.grad is not None)


@pytest.mark.parametrize("infinite", [False, True], ids=["finite", "infinite"])
def test_zeros_under_zero_grads(infinite: bool, backend: str) -> None:
    params = parameters()
    opt = FusedRAdam(params, backend=backend, zero_grads=True)
    give(params, 0, ODD, infinite=infinite)
    scaler_of(ODD).step(opt)
    assert all(not p.grad.any() for p in params if p.grad is not None)


def test_no_scaler_no_write() -> None:
    """The negative control: without GradScaler a step leaves gradients alone."""
    params = parameters()
    opt = FusedRAdam(params, max_grad_norm=0.25)
    give(params, 0, ODD)
    before = [p.grad.clone() for p in params if p.grad is not None]
    opt.step()
    assert all(same_bits(p.grad, grad) for p, grad in zip(params, before, strict=True) if p.grad is not None)


def test_parameters_step_by_what_was_not_rounded() -> None:
    """16-bit gradients: unscaled in place first, small ones would be lost to the step."""
    p = nn.Parameter(torch.zeros(4, dtype=torch.float16))
    opt = FusedRAdam([p], lr=1.0, master_weights="fp32")
    scale = 2.0**16
    p.grad = torch.full((4,), 2.0**-10, dtype=torch.float16)  # 2^-26 unscaled, below float16's smallest
    scaler_of(scale).step(opt)
    assert p.grad is not None
    assert not p.grad.any()
    assert torch.equal(opt.state[p]["exp_avg"], torch.full((4,), 2.0**-26) * torch.tensor(1 - 0.9))


def test_complex_gradients() -> None:
    p = nn.Parameter(torch.randn(5, dtype=torch.complex64))
    opt = FusedRAdam([p])
    p.grad = torch.randn(5, dtype=torch.complex64)
    expected = p.grad.clone()
    opt.grad_scale, opt.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    opt.step()
    assert torch.equal(p.grad, expected / 4)


def test_shared_gradient_is_unscaled_once() -> None:
    p, q = nn.Parameter(torch.ones(5000)), nn.Parameter(torch.ones(5000))
    opt = FusedRAdam([p, q])
    p.grad = q.grad = torch.full((5000,), 8.0)
    opt.grad_scale, opt.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    opt.step()
    assert torch.equal(p.grad, torch.full((5000,), 2.0))


# Wrappers.


class Forwarding:
    """Forwards attributes that it lacks to the optimizer, as Lookahead-like wrappers do."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["inner"], name)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner.step(*args, **kwargs)


WRAPPERS: dict[str, Any] = {
    "direct": lambda opt: opt,
    "forwarding": Forwarding,
    "twice": lambda opt: Forwarding(Forwarding(opt)),
    "proxy": weakref.proxy,
}


def trained(make: Any, wrap: Any) -> list[Tensor]:
    """Parameters, and gradients as the last step leaves them, after six steps of which one has an infinity."""
    params = parameters()
    opt = make(params)
    wrapped, scaler = wrap(opt), scaler_of(1024.0)
    for t in range(6):
        give(params, t, scaler.get_scale(), infinite=t == 2)
        scaler.step(wrapped)
        scaler.update()
    return [p.detach() for p in params] + [p.grad for p in params if p.grad is not None]


def ours(params: list[nn.Parameter]) -> FusedRAdam:
    return FusedRAdam(params, lr=0.1)


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_optimizer(name: str) -> None:
    expected = trained(ours, WRAPPERS["direct"])
    assert all(map(same_bits, trained(ours, WRAPPERS[name]), expected))
    torchs = trained(lambda params: torch.optim.RAdam(params, lr=0.1), WRAPPERS[name])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(expected, torchs, strict=True))


def test_wrapper_that_answers_for_the_optimizer_would_step_by_scaled_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the test above."""
    monkeypatch.setattr(radam_fused.optimizer, "asked_of_another", lambda optimizer: False)
    steps = trained(ours, WRAPPERS["forwarding"])
    assert not all(map(same_bits, steps, trained(ours, WRAPPERS["direct"])))


def test_the_answer_to_others() -> None:
    """Tools ask as well, and get what the optimizer does."""
    opt = FusedRAdam(parameters())
    assert opt._step_supports_amp_scaling
    assert Forwarding(opt)._step_supports_amp_scaling
    assert not FusedRAdam(parameters(), differentiable=True)._step_supports_amp_scaling
