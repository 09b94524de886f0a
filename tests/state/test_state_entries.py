"""``optimizer.state``: which parameters have entries, and what is in them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from radam_fused import FusedRAdam
from tests.support.helpers import filled, same_bits
from tests.support.parameter_sets import both_ways, parameters, set_gradients, train


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("layout", ["0-d", "size_0", "size_257", "matrix", "transposed", "channels_last", "strided"])
def test_state_is_laid_out_as_torchs(layout: str, dtype: torch.dtype) -> None:
    own, other = (nn.Parameter(filled(layout, dtype, seed=1)) for _ in range(2))
    opts = FusedRAdam([own]), torch.optim.RAdam([other])
    for opt in opts:
        train(opt, range(2))
    states = opts[0].state[own], opts[1].state[other]
    assert list(states[0]) == list(states[1])
    for key, expected in states[1].items():
        found = states[0][key]
        assert (found.dtype, found.shape, found.stride()) == (expected.dtype, expected.shape, expected.stride())
        assert found.device == expected.device
        assert not found.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_moments_of_16_bit_parameters_are_float32(dtype: torch.dtype) -> None:
    (p,) = parameters((7,), dtype=dtype)
    train(opt := FusedRAdam([p]), range(1))
    assert [opt.state[p][key].dtype for key in ("step", "exp_avg", "exp_avg_sq")] == [torch.float32] * 3


def test_state_is_empty_before_the_first_step() -> None:
    opt = FusedRAdam(parameters((3,), (4,)))
    assert opt.state_dict()["state"] == {}
    opt.step()
    assert opt.state_dict()["state"] == {}


def test_state_only_for_parameters_that_had_a_gradient() -> None:
    params = parameters((3,), (4,), (5,))
    opt = FusedRAdam(params)
    set_gradients([params[1]], 0)
    opt.step()
    assert list(opt.state) == [params[1]]
    assert list(opt.state_dict()["state"]) == [1]
    set_gradients([params[2]], 0)
    opt.step()
    assert {i: int(opt.state[p]["step"]) for i, p in enumerate(params) if p in opt.state} == {1: 2, 2: 1}


@both_ways
def test_frozen_parameters_have_neither_bucket_nor_state(flatten: bool) -> None:
    params = parameters((30_000,), (4,))
    params[0].requires_grad_(False)
    opt = FusedRAdam(params, flatten=flatten, weight_decay=0.1)
    before = params[0].detach().clone()
    address = params[0].data_ptr()
    for t in range(3):
        set_gradients([params[1]], t)
        opt.step()
    assert list(opt.state) == [params[1]]
    assert same_bits(params[0], before)
    assert params[0].data_ptr() == address
    assert params[0].grad is None
    storages = {s["exp_avg"].untyped_storage().nbytes() for s in opt.state.values()}
    assert max(storages) < 30_000


@both_ways
def test_parameter_unfrozen_later(flatten: bool) -> None:
    own, other = parameters((6,), (4,)), parameters((6,), (4,))
    for params in (own, other):
        params[0].requires_grad_(False)
    opts = FusedRAdam(own, flatten=flatten), torch.optim.RAdam(other)
    for t in range(10):
        for params, opt in zip((own, other), opts, strict=True):
            params[0].requires_grad_(t >= 3)
            set_gradients([p for p in params if p.requires_grad], t)
            opt.step()
    assert [int(opts[0].state[p]["step"]) for p in own] == [7, 10]
    for p, q in zip(own, other, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
