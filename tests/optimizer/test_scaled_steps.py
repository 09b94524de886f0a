"""Steps under a GradScaler: the bits of unscaled training; skipped steps leave all but the gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from radam_fused import FusedRAdam
from tests.support.helpers import all_same_bits, same_bits
from tests.support.training_steps import (
    TOLERANCE,
    Amp,
    both_ways,
    contents,
    deviation,
    give,
    native,
    scaler_of,
    small,
    train,
)

pytestmark = pytest.mark.filterwarnings("ignore:grad and param do not obey the gradient layout")  # on purpose


@pytest.mark.parametrize("clip", [None, 0.5], ids=["", "clip"])
@both_ways
@native
def test_scaled_training_has_the_bits_of_unscaled(name: str, flatten: bool, clip: float | None) -> None:
    opts = [FusedRAdam(small(), lr=0.1, backend=name, flatten=flatten, max_grad_norm=clip) for _ in range(2)]
    amp = Amp(opts[0])
    steps = range(8 if name == "cpu" or clip is None else 2)
    for t in steps:
        amp.backward(t)
        amp.step()
    train(opts[1], steps)
    assert all_same_bits(contents(opts[0]), contents(opts[1]))
    if clip is not None:
        assert same_bits(opts[0].last_grad_norm, opts[1].last_grad_norm)


@pytest.mark.parametrize("zero_grads", [False, True], ids=["keep", "zero_grads"])
@both_ways
@native
def test_gradients_are_left_unscaled(name: str, flatten: bool, zero_grads: bool) -> None:
    opt = FusedRAdam(small(), backend=name, flatten=flatten, zero_grads=zero_grads)
    amp = Amp(opt)
    for t in range(3):
        amp.backward(t)
        before = [p.grad.clone() for p in amp.params]
        amp.step()
        after = [torch.zeros_like(g) if zero_grads else g / 1024.0 for g in before]
        assert all_same_bits([p.grad for p in amp.params], after)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan], ids=["inf", "-inf", "nan"])
@pytest.mark.parametrize("when", [0, 3, 7], ids=lambda t: f"after_{t}")
@pytest.mark.parametrize(
    "options", [{}, {"zero_grads": True}, {"capturable": True}, {"max_grad_norm": 0.5}], ids="+".join
)
@both_ways
def test_skipped_step_leaves_all_but_gradients_bit_for_bit(flatten: bool, options: dict, when: int, bad: float) -> None:
    """Which it unscales, as torch.optim.RAdam leaves them; the next one goes on where the last one taken had left."""
    opt, unskipped = (FusedRAdam(small(), lr=0.1, flatten=flatten, weight_decay=0.1, **options) for _ in range(2))
    amp = Amp(opt)
    for t in range(when):
        amp.backward(t)
        amp.step()
    before = contents(opt)
    amp.backward(99)
    amp.params[1].grad[2] = bad
    grads = [p.grad.clone() for p in amp.params]
    amp.step()
    assert amp.scaler.get_scale() == 512.0
    assert all_same_bits(contents(opt), before)
    if options.get("zero_grads"):
        assert not any(p.grad.any() for p in amp.params)
    else:
        assert all_same_bits([p.grad for p in amp.params], [grad / 1024.0 for grad in grads])
    for t in range(when, when + 4):
        amp.backward(t)
        amp.step()
    train(unskipped, range(when + 4))
    assert all_same_bits(contents(opt), contents(unskipped))


@native
def test_skipped_first_step_on_the_reference_too(name: str) -> None:
    amp = Amp(opt := FusedRAdam(small(), backend=name))
    before = contents(opt)
    amp.backward(0)
    amp.params[0].grad[0, 0] = math.inf
    amp.step()
    assert all_same_bits(contents(opt), before)


def test_step_that_is_not_skipped_is_noticed() -> None:
    """The negative control of the tests above: the same infinity without a scaler."""
    opt = FusedRAdam(small())
    before = contents(opt)
    give(opt.param_groups[0]["params"], 0)
    opt.param_groups[0]["params"][0].grad[0, 0] = math.inf
    opt.step()
    assert not all_same_bits(contents(opt), before)


@pytest.mark.parametrize("infinite", [False, True], ids=["finite", "infinite"])
@both_ways
def test_unscale_is_not_done_twice(flatten: bool, infinite: bool) -> None:
    """After the user's own unscale_, and clipping of what it left, the step takes gradients as they are."""
    opts = FusedRAdam(small(), lr=0.1, flatten=flatten), torch.optim.RAdam(small(), lr=0.1)
    for t in range(9):
        amps = [Amp(opt) for opt in opts]
        for amp in amps:
            amp.backward(t)
            if infinite and t == 4:
                amp.params[2].grad.fill_(math.inf)
            amp.scaler.unscale_(amp.opt)
            nn.utils.clip_grad_norm_(amp.params, 0.7)
            amp.step()
    assert [int(s["step"]) for s in opts[0].state.values()] == [9 - infinite] * 3
    for a, b in zip(contents(opts[0]), contents(opts[1]), strict=True):
        assert deviation(a, b) < TOLERANCE if b.any() else not a.any()


def test_one_scaler_for_two_optimizers() -> None:
    """Only the one that met an infinity skips its step, whichever group or dtype it is in."""
    first = FusedRAdam(small() + small(torch.float64), lr=0.1)
    second = FusedRAdam(small(), lr=0.1)
    scaler = scaler_of()
    scaler.scale(torch.zeros(()))
    for opt in (first, second):
        give([p for g in opt.param_groups for p in g["params"]], 0, 1024.0)
    first.param_groups[0]["params"][5].grad.fill_(math.inf)
    before = contents(first), contents(second)
    for opt in (first, second):
        scaler.step(opt)
    scaler.update()
    assert scaler.get_scale() == 512.0
    assert all_same_bits(contents(first), before[0])
    assert not all_same_bits(contents(second), before[1])


def test_steps_with_and_without_a_scaler_take_turns() -> None:
    opts = [FusedRAdam(small(), lr=0.1) for _ in range(2)]
    amp = Amp(opts[0])
    for t in range(8):
        if t % 3:
            train(opts[0], range(t, t + 1))
        else:
            amp.backward(t)
            amp.step()
    train(opts[1], range(8))
    assert all_same_bits(contents(opts[0]), contents(opts[1]))


def test_gradient_left_out_of_the_first_scaled_step() -> None:
    """Until then the host counts; from then on a scalars operator, each parameter's steps by themselves."""
    opts = FusedRAdam(small(), lr=0.1), torch.optim.RAdam(small(), lr=0.1)
    for opt in opts:
        train(opt, range(4))
        amp = Amp(opt)
        for t in range(4, 12):
            amp.backward(t)
            if t == 4:
                amp.params[1].grad = None
            amp.step()
    assert [int(s["step"]) for s in opts[0].state.values()] == [12, 11, 12]
    assert all(deviation(a, b) < TOLERANCE for a, b in zip(contents(opts[0]), contents(opts[1]), strict=True))
