"""Dtypes mixed in one optimizer, empty tensors, gradients in other layouts, and parameters whose data is replaced."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from radam_fused import FusedRAdam
from tests.support.helpers import same_bits
from tests.support.parameter_sets import all_same_bits, both_ways, parameters, set_gradients, train


@both_ways
def test_dtypes_mixed_in_one_optimizer(flatten: bool) -> None:
    """Each is stepped as it would be alone."""
    dtypes = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
    mixed = [parameters((5, 3), (4,), seed=i, dtype=dtype) for i, dtype in enumerate(dtypes)]
    alone = [parameters((5, 3), (4,), seed=i, dtype=dtype) for i, dtype in enumerate(dtypes)]
    opt = FusedRAdam([p for pair in zip(*mixed, strict=True) for p in pair], lr=0.01, flatten=flatten)
    opts = [FusedRAdam(params, lr=0.01) for params in alone]
    for t in range(12):
        for params in mixed + alone:
            set_gradients(params, t)
        for each in (opt, *opts):
            each.step()
    for params, single in zip(mixed, alone, strict=True):
        assert all_same_bits(params, single)
    assert not same_bits(mixed[0][0].float(), mixed[1][0].float())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@both_ways
def test_empty_and_0d_tensors_between_others(backend: str, flatten: bool) -> None:
    shapes = [(0,), (3,), (), (0, 4), (5, 2), (2, 0, 3)]
    params = parameters(*shapes)
    full = parameters(*[s for s in shapes if 0 not in s])
    for p, q in zip([p for p in params if p.numel()], full, strict=True):
        q.data.copy_(p.data)
    opts = FusedRAdam(params, backend=backend, flatten=flatten), FusedRAdam(full, backend=backend)
    for t in range(8):
        set_gradients(params, t)
        for p, q in zip([p for p in params if p.numel()], full, strict=True):
            q.grad = p.grad.clone()
        for opt in opts:
            opt.step()
    assert all_same_bits([p for p in params if p.numel()], full)
    assert [int(opts[0].state[p]["step"]) for p in params] == [8] * 6


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_only_empty_tensors(backend: str) -> None:
    params = parameters((0,), (0, 3))
    train(opt := FusedRAdam(params, backend=backend), range(3))
    assert [int(s["step"]) for s in opt.state.values()] == [3, 3]


GRADIENT_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda g: g.t().contiguous().t(),
    "strided": lambda g: torch.stack([g, -g], -1)[..., 0],
    "misaligned": lambda g: torch.cat([torch.zeros(1), g.flatten()])[1:].view(g.shape),
    "expanded": lambda g: g[:1].expand_as(g),
    "scalar_expanded": lambda g: g[0, 0].expand_as(g),
}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("layout", GRADIENT_LAYOUTS.values(), ids=GRADIENT_LAYOUTS)
@both_ways
def test_gradient_in_another_layout(layout: Callable, backend: str, flatten: bool) -> None:
    nets = [parameters((7, 5), (3,)) for _ in range(2)]
    opts = [FusedRAdam(params, backend=backend, flatten=flatten) for params in nets]
    for t in range(8):
        for params, arrange in zip(nets, (layout, lambda g: layout(g).contiguous()), strict=True):
            params[0].grad = None
            set_gradients(params, t)
            params[0].grad = arrange(params[0].grad)
        for opt in opts:
            opt.step()
    assert all_same_bits(*nets)


# Parameters whose tensors change under the optimizer.


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_parameter_data_replaced_between_steps(backend: str) -> None:
    own, other = parameters((6, 3), (4,)), parameters((6, 3), (4,))
    opts = FusedRAdam(own, backend=backend), torch.optim.RAdam(other)
    for t in range(12):
        for params, opt in zip((own, other), opts, strict=True):
            set_gradients(params, t)
            if t == 7:
                params[0].data = torch.full((6, 3), 0.5)
            opt.step()
    for p, q in zip(own, other, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_parameter_moved_to_another_memory_format(backend: str) -> None:
    """As `model.to(memory_format=torch.channels_last)` does after some steps: every moment stays with its element."""
    own, other = parameters((4, 6, 5, 7)), parameters((4, 6, 5, 7))
    opts = FusedRAdam(own, backend=backend, lr=0.01), torch.optim.RAdam(other, lr=0.01)
    for t in range(12):
        for params, opt in zip((own, other), opts, strict=True):
            if t == 7:
                params[0].data = params[0].data.to(memory_format=torch.channels_last)
            set_gradients(params, t)
            opt.step()
    torch.testing.assert_close(own[0], other[0], rtol=1e-6, atol=1e-6)


def test_autograd_notices_a_step_between_forward_and_backward() -> None:
    (w,) = parameters((3, 3))
    opt = FusedRAdam([w])
    set_gradients([w], 0)
    loss = w.square().sum()
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_version_counters_rise_only_where_a_step_was_taken() -> None:
    params = parameters((3,), (4,))
    opt = FusedRAdam(params)
    set_gradients(params, 0)
    opt.step()
    params[1].grad = None
    versions = [p._version for p in params]
    opt.step()
    assert params[0]._version > versions[0]
    assert params[1]._version == versions[1]


@pytest.fixture
def _collected() -> Iterator[None]:
    gc.collect()
    yield
    gc.collect()


@both_ways
@pytest.mark.usefixtures("_collected")
def test_optimizer_and_parameters_are_freed(flatten: bool) -> None:
    """No reference keeps a dropped optimizer's buffers alive."""
    params = parameters((50_000,))
    opt = FusedRAdam(params, flatten=flatten)
    train(opt, range(2))
    moments = opt.state[params[0]]["exp_avg"].untyped_storage()
    del opt
    gc.collect()
    assert torch._C._storage_Use_Count(moments._cdata) == 1
