"""``zero_grads``, and gradients that torch negates or conjugates as it reads them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam
from tests.support.training_steps import both_ways, contents, give, native, noise, small, train

pytestmark = pytest.mark.filterwarnings("ignore:grad and param do not obey the gradient layout")  # on purpose


@both_ways
@native
def test_cleared_gradients_stay_where_they_are(name: str, flatten: bool) -> None:
    params = small()
    opt = FusedRAdam(params, backend=name, flatten=flatten, zero_grads=True)
    train(opt, range(1))
    addresses = [p.grad.data_ptr() for p in params]
    train(opt, range(1, 4))
    assert [p.grad.data_ptr() for p in params] == addresses
    assert not any(p.grad.any() for p in params)


def test_cleared_gradient_of_a_saved_graph_is_noticed() -> None:
    """Writing gradients counts as writing: autograd refuses a graph that has saved one."""
    (p,) = small()[:1]
    opt = FusedRAdam([p], zero_grads=True)
    give([p], 0)
    penalty = p.grad.requires_grad_().square().sum()
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        penalty.backward()


LAZY: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "conjugate": lambda: (noise((5,), 1, torch.complex64).conj(), noise((5,), 1, torch.complex64).conj_physical()),
    "negative": lambda: (noise((5,), 1, torch.complex64).conj().imag, -noise((5,), 1, torch.complex64).imag),
    "zero": lambda: (torch._efficientzerotensor((5,)), torch.zeros(5)),
}


@pytest.mark.parametrize("options", [{}, {"zero_grads": True}, {"max_grad_norm": 0.3}, {"flatten": True}], ids="+".join)
@pytest.mark.parametrize("kind", LAZY)
@native
def test_lazy_gradient(name: str, kind: str, options: dict) -> None:
    """Views that torch negates or conjugates as it reads, which autograd.grad returns at times."""
    lazy, plain_one = LAZY[kind]()
    assert lazy.is_conj() or lazy.is_neg() or lazy._is_zerotensor()
    if lazy.is_complex() and options.get("flatten"):
        with pytest.raises(ValueError, match="must be real"):
            FusedRAdam([nn.Parameter(torch.ones_like(plain_one))], flatten=True)
        return
    opts = []
    for grad in (lazy, plain_one):
        params = [nn.Parameter(torch.ones_like(plain_one)), nn.Parameter(torch.ones_like(plain_one))]
        opts.append(FusedRAdam(params, lr=0.1, backend=name, **options))
        params[0].grad, params[1].grad = grad, plain_one.clone()
        opts[-1].step()
        if options.get("zero_grads"):
            assert not params[0].grad.any()
    pairs = zip(contents(opts[0]), contents(opts[1]), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", ["conjugate", "negative"])
def test_lazy_parameter_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"param_groups\[0\]\['params'\]\[0\] is a lazy {kind}"):
        FusedRAdam([nn.Parameter(LAZY[kind]()[0])])
