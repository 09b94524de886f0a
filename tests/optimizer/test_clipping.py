"""``max_grad_norm``: the step is clipped, the gradients are not."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from radam_fused import FusedRAdam
from tests.support.helpers import all_same_bits, same_bits
from tests.support.training_steps import both_ways, contents, give, native, small, train

pytestmark = pytest.mark.filterwarnings("ignore:grad and param do not obey the gradient layout")  # on purpose


@both_ways
def test_clipping_leaves_the_gradients(flatten: bool) -> None:
    opt = FusedRAdam(small(), flatten=flatten, max_grad_norm=0.1)
    give(params := opt.param_groups[0]["params"], 0)
    before = [p.grad.clone() for p in params]
    assert opt.last_grad_norm is None
    opt.step()
    assert all_same_bits([p.grad for p in params], before)
    norm = torch.nn.utils.get_total_norm([g.double() for g in before])
    assert opt.last_grad_norm.item() == pytest.approx(norm.item(), rel=1e-6)
    assert opt.last_grad_norm.dtype == torch.float64


@pytest.mark.parametrize("bound", [math.inf, 1e9], ids=["inf", "far"])
@both_ways
@native
def test_norm_below_the_bound_changes_no_bit(name: str, flatten: bool, bound: float) -> None:
    opts = [FusedRAdam(small(), lr=0.1, backend=name, flatten=flatten, max_grad_norm=b) for b in (bound, None)]
    for opt in opts:
        train(opt, range(8 if name == "cpu" else 2))
    assert all_same_bits(contents(opts[0]), contents(opts[1]))
    assert opts[0].last_grad_norm > 1
    assert opts[1].last_grad_norm is None


@pytest.mark.parametrize("bound", [1e-9, 0.3, math.inf], ids=lambda b: f"to_{b:g}")
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan], ids=["inf", "-inf", "nan"])
@both_ways
@native
def test_infinite_gradients_as_torch_clips_them(name: str, flatten: bool, bad: float, bound: float) -> None:
    """An infinite norm makes finite gradients 0 and infinite ones NaN; a NaN one makes all of them NaN."""
    ours, theirs = small(), small()
    opts = FusedRAdam(ours, backend=name, flatten=flatten, max_grad_norm=bound), torch.optim.RAdam(theirs)
    for params in (ours, theirs):
        give(params, 0)
        params[0].grad[1, 1] = bad
    norm = nn.utils.clip_grad_norm_(theirs, bound)
    for opt in opts:
        opt.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7, equal_nan=True)
    torch.testing.assert_close(opts[0].last_grad_norm, norm.double(), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@native
def test_norm_over_all_dtypes(name: str, dtype: torch.dtype) -> None:
    """Whatever the dtypes: also where torch's own float16 norm would overflow."""
    params = [*small(), *small(dtype), *small(torch.float64)]
    opt = FusedRAdam(params, backend=name, max_grad_norm=1.0)
    give(params, 0)
    params[3].grad.fill_(30_000.0)
    params[1].grad = None
    opt.step()
    squares = sum((p.grad.double() ** 2).sum() for p in params if p.grad is not None)
    assert opt.last_grad_norm.item() == pytest.approx(math.sqrt(squares), rel=1e-6)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_copies_keep_the_options(copier: Callable) -> None:
    opt = FusedRAdam(small(), lr=0.1, max_grad_norm=0.3, zero_grads=True, capturable=True)
    train(opt, range(3))
    copied = copier(opt)
    for each in (opt, copied):
        train(each, range(3, 9))
    assert all_same_bits(contents(opt), contents(copied))
    assert same_bits(opt.last_grad_norm, copied.last_grad_norm)
    assert not any(p.grad.any() for p in copied.param_groups[0]["params"])
