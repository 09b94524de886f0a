"""``offload=True``: which bytes are copied, and how much staging memory that takes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from radam_fused.backends import offload
from tests.support.offloaded import SHAPES, SMALL, Count, model, results, same, train


def test_twelve_bytes_an_element(use_transfer: Callable, small_slots: None) -> None:
    """Of float32: parameter and gradient down, parameter up; the moments stay where they are."""
    use_transfer(count := Count())
    params, opt = model(offload=True)
    train(params, opt, range(1))
    elements = sum(p.numel() for p in params)
    assert count.moved == {"down": 8 * elements, "up": 4 * elements}


def test_staging_memory_is_bounded(use_transfer: Callable, small_slots: None) -> None:
    """However large the model, with gradients of one dtype or another; a small one takes what it needs."""
    use_transfer(count := Count())
    train(*model([(100_000,), (300, 400)], offload=True), range(3))
    assert count.allocated == offload.SLOTS * SMALL
    count.allocated = 0
    train(*model([(100,)], offload=True), range(3))
    assert count.allocated < 2 * (100 * 8) < SMALL


def test_staging_grows_with_the_gradients(use_transfer: Callable, small_slots: None) -> None:
    use_transfer(count := Count())
    params, opt = model([(100,), (100_000,)], offload=True)
    params[0].grad = torch.ones(100)
    opt.step()
    first = count.allocated
    assert 0 < first < SMALL
    train(params, opt, range(2))
    assert count.allocated - first == offload.SLOTS * SMALL


@pytest.mark.parametrize("zero_grads", [False, True])
def test_a_skipped_step_moves_nothing(zero_grads: bool, use_transfer: Callable) -> None:
    use_transfer(count := Count())
    params, opt = model(offload=True, zero_grads=zero_grads)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    train(params, opt, range(2))
    before, moved = copy.deepcopy(results(params, opt)), dict(count.moved)
    scaler.scale(params[0].sum())
    params[0].grad[3] = float("inf")
    params[1].grad.fill_(1.0)
    scaler.step(opt)
    scaler.update()
    assert scaler.get_scale() == 4.0
    assert same(results(params, opt), before)
    assert count.moved == moved
    assert [int(s["step"]) for s in opt.state.values()] == [2] * len(SHAPES)
    assert bool(params[1].grad.any()) != zero_grads
