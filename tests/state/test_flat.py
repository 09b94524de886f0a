"""``flatten=True``: parameters and gradients are views of flat buffers, whatever is done to them between steps."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam
from tests.support.flat_pairs import assert_side_by_side, backward, give, model, model_pair, pair, same, small, train
from tests.support.helpers import filled, params_of, same_bits

LAYOUTS = ["size_0", "size_1", "size_3", "0-d", "size_257", "transposed", "channels_last", "matrix", "strided"]


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def test_parameters_and_gradients_are_views_of_one_buffer_each() -> None:
    params = [nn.Parameter(filled(layout, torch.float32, i)) for i, layout in enumerate(LAYOUTS)]
    before = [p.detach().clone() for p in params]
    opt = FusedRAdam(params, flatten=True)
    assert_side_by_side(params)
    assert_side_by_side([p.grad for p in params])
    for p, value in zip(params, before, strict=True):
        assert p.is_leaf
        assert same_bits(p, value)
        assert p.grad.shape == p.shape
        assert not p.grad.any()
    train(opt, range(2))
    assert_side_by_side(params)
    assert_side_by_side([p.grad for p in params])
    assert_side_by_side([opt.state[p]["exp_avg"] for p in params])


def test_without_flatten_everything_stays_where_it_is() -> None:
    """The negative control of the test above."""
    params = small(3)
    addresses = [p.data_ptr() for p in params]
    train(FusedRAdam(params), range(2))
    assert [p.data_ptr() for p in params] == addresses
    assert len({storage(p) for p in params}) == 3


@pytest.mark.parametrize("layout", ["transposed", "channels_last", "matrix"])
def test_views_keep_the_strides(layout: str) -> None:
    p = nn.Parameter(filled(layout, torch.float32, 0))
    strides = p.stride()
    FusedRAdam([p], flatten=True)
    assert p.stride() == p.grad.stride() == strides


def test_gradients_that_were_there_are_kept() -> None:
    params = small(3)
    params[1].grad = torch.tensor([1.0, 2.0, 3.0])
    FusedRAdam(params, flatten=True)
    assert params[1].grad.tolist() == [1.0, 2.0, 3.0]
    assert_side_by_side([p.grad for p in params])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=["fp32", "fp64", "bf16"])
def test_same_bits_as_without(dtype: torch.dtype, backend: str) -> None:
    """Over odd layouts and groups with hyperparameters of their own, in an order that interleaves them."""
    opts = []
    for flatten in (True, False):
        params = [nn.Parameter(filled(layout, dtype, i)) for i, layout in enumerate(LAYOUTS)]
        groups = [
            {"params": params[0::3], "lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True},
            {"params": params[1::3], "betas": (0.8, 0.99), "maximize": True},
            {"params": params[2::3], "rectification": "none", "weight_decay": 0.1},
        ]
        opts.append(FusedRAdam(groups, backend=backend, flatten=flatten))
    for opt in opts:
        train(opt, range(9))
    assert same(*opts)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_another_gradient_gives_other_bits(backend: str) -> None:
    """The negative control of the tests that compare with and without."""
    opts = pair(backend=backend)
    for opt in opts:
        train(opt, range(3))
    params_of(opts[0])[70].grad.mul_(1.001)
    for opt in opts:
        opt.step()
    assert not same(*opts)


def test_real_model() -> None:
    """Autograd accumulates into the views, and clipping scales them in place."""
    nets, opts = model_pair()
    losses = []
    for t in range(20):
        for net, opt in zip(nets, opts, strict=True):
            opt.zero_grad()
            backward(net, t % 2)
            backward(net, t % 2 + 5)
            losses.append(backward(net, t % 2).item())
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            opt.step()
        assert_side_by_side([p.grad for p in nets[0].parameters()])
    assert same(*opts)
    assert losses[0] == losses[1]
    assert losses[-1] < losses[0]


# Loading and copying.


@pytest.mark.parametrize("when", [0, 3], ids=["before_the_first_step", "after_3_steps"])
def test_load_state_dict_of_the_model_keeps_the_views(when: int) -> None:
    nets, opts = model_pair()
    for net, opt in zip(nets, opts, strict=True):
        train(opt, range(when))
        addresses = [p.data_ptr() for p in net.parameters()]
        net.load_state_dict(model(seed=9).state_dict())
        assert [p.data_ptr() for p in net.parameters()] == addresses
        train(opt, range(when, when + 5))
    assert same(*opts)


def test_load_state_dict_keeps_waiting_gradients() -> None:
    opts = pair()
    for opt in opts:
        train(opt, range(3))
        for i, p in enumerate(params_of(opt)):
            give(p, i)
        opt.load_state_dict(copy.deepcopy(opt.state_dict()))
        opt.step()
    assert same(*opts)
    assert_side_by_side(params_of(opts[0]))


def test_group_added_later() -> None:
    opts = pair(lambda: small(5))
    for opt in opts:
        train(opt, range(3))
        opt.add_param_group({"params": small(4, size=70), "lr": 0.05})
        train(opt, range(3, 12))
    assert same(*opts)
    assert_side_by_side(params_of(opts[0])[5:])


@pytest.mark.parametrize(
    "copier", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["deepcopy", "pickle"]
)
def test_copies_have_buffers_of_their_own(copier: Callable) -> None:
    net = model()
    opt = FusedRAdam(net.parameters(), lr=0.01, flatten=True)
    train(opt, range(3))
    net2, opt2 = copier((net, opt))
    for n in (net, net2):
        assert_side_by_side([*n.parameters()])
    assert storage(net[0].weight) != storage(net2[0].weight)
    before = [p.detach().clone() for p in net.parameters()]
    train(opt2, range(3, 6))
    assert all(same_bits(p, b) for p, b in zip(net.parameters(), before, strict=True))
    train(opt, range(3, 6))
    assert same(opt, opt2)
