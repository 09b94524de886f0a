"""`step_in_backward` against the same optimizer stepping after the backward pass: the same bits, whatever happens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from radam_fused import FusedRAdam, step_in_backward
from tests.support.helpers import same_bits
from tests.support.small_models import STEPS, Net, Training, assert_same, train, training

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "l2_decay": {"weight_decay": 0.1},
    "decoupled_decay": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "maximize": {"maximize": True},
    "hold_rho_4": {"rho_threshold": 4.0, "degenerated_to_sgd": False},
    "exact": {"rectification": "exact"},
    "capturable": {"capturable": True},
    "tensor_lr": {"lr": torch.tensor(0.02)},
    "zero_grads": {"zero_grads": True},
}


@pytest.mark.sampled
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_same_bits_as_after_backward(options: dict[str, Any], backend: str) -> None:
    after, during = (training(backend, **options) for _ in range(2))
    step_in_backward(during.opt)
    for run in (after, during):
        train(run, range(STEPS))
    assert_same(after, during)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=["bf16", "fp64"])
def test_same_bits_in_other_dtypes(dtype: torch.dtype, backend: str) -> None:
    after, during = (training(backend, Net(dtype)) for _ in range(2))
    step_in_backward(during.opt)
    for run in (after, during):
        train(run, range(STEPS))
    assert_same(after, during)


def test_complex_parameters(backend: str) -> None:
    params = [[nn.Parameter(torch.linspace(0, 1, 6) * (1 + 2j)) for _ in range(3)] for _ in range(2)]
    opts = [FusedRAdam(three, lr=0.01, backend=backend) for three in params]
    step_in_backward(opts[1])
    for t in range(STEPS):
        for three, opt in zip(params, opts, strict=True):
            (three[0] * three[1] + t * three[2]).abs().sum().backward()
            opt.step()
            opt.zero_grad()
    assert not torch.equal(params[0][0], torch.linspace(0, 1, 6) * (1 + 2j))
    for p, q in zip(*params, strict=True):
        assert same_bits(torch.view_as_real(p.detach()), torch.view_as_real(q.detach()))


def test_another_rate_is_noticed(backend: str) -> None:
    """The negative control of the tests above."""
    after, during = training(backend), training(backend, lr=0.01 * (1 + 2**-20))
    step_in_backward(during.opt)
    for run in (after, during):
        train(run, range(STEPS))
    with pytest.raises(AssertionError, match="embedding"):
        assert_same(after, during)


def test_parameters_are_stepped_before_backward_returns(backend: str) -> None:
    run = training(backend)
    step_in_backward(run.opt)
    before = [p.detach().clone() for p in run.net.parameters()]
    run.net.loss(0).backward()
    moved = [not same_bits(p, q) for p, q in zip(run.net.parameters(), before, strict=True)]
    assert moved == [p is not run.net.idle for p in run.net.parameters()]
    assert all(p.grad is None for p in run.net.parameters())
    assert {int(entry["step"]) for entry in run.opt.state.values()} == {1}
    assert run.net.idle not in run.opt.state
    stepped = [p.detach().clone() for p in run.net.parameters()]
    run.opt.step()
    assert all(same_bits(p, q) for p, q in zip(run.net.parameters(), stepped, strict=True))


def test_a_step_before_backward_returns_is_not_the_ordinary_way(backend: str) -> None:
    """The negative control of the test above."""
    run = training(backend)
    run.net.loss(0).backward()
    assert run.opt.state == {}
    assert run.net.up.weight.grad is not None


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non_reentrant"])
def test_checkpointed_parts(reentrant: bool, backend: str) -> None:
    after, during = training(backend), training(backend, Net(reentrant=reentrant))
    step_in_backward(during.opt)
    for run in (after, during):
        train(run, range(STEPS))
    assert_same(after, during)


def test_parameter_shared_by_reentrant_checkpoints_is_an_error() -> None:
    """Its gradient arrives in two parts; the first alone must not pass for the whole."""
    layer = nn.Linear(4, 4)
    opt = FusedRAdam(layer.parameters(), backend="reference")
    step_in_backward(opt)
    x = torch.ones(2, 4, requires_grad=True)
    for _ in range(2):
        x = checkpoint(layer, x, use_reentrant=True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        x.sum().backward()


# Accumulation.


@pytest.mark.parametrize("passes", [2, 3])
def test_accumulation(passes: int, backend: str) -> None:
    after, during = (training(backend, weight_decay=0.1) for _ in range(2))
    step_in_backward(during.opt, accumulate=passes)
    for run in (after, during):
        train(run, range(STEPS), passes)
    assert_same(after, during)


def test_gradients_stay_until_the_last_pass(backend: str) -> None:
    run = training(backend)
    step_in_backward(run.opt, accumulate=2)
    for held in (True, False):
        run.net.loss(0).backward()
        assert [p.grad is not None for p in run.net.parameters()] == [
            held and p is not run.net.idle for p in run.net.parameters()
        ]


def test_step_after_fewer_passes_takes_what_there_is(backend: str) -> None:
    """As at the end of an epoch."""
    after, during = (training(backend) for _ in range(2))
    step_in_backward(during.opt, accumulate=3)
    for run in (after, during):
        for first in range(0, 3 * STEPS, 3):
            train(run, range(first, first + 1), 3)
            train(run, range(first + 1, first + 2), 2)
            train(run, range(first + 2, first + 3), 1)
    assert_same(after, during)


def test_zero_grad_drops_what_was_accumulated(backend: str) -> None:
    after, during = (training(backend) for _ in range(2))
    step_in_backward(during.opt, accumulate=2)
    for run in (after, during):
        for t in range(STEPS):
            run.net.loss(7).backward()
            run.opt.zero_grad(set_to_none=t % 2 == 0)
            train(run, range(t, t + 1), 2)
    assert_same(after, during)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_pass_too_many_is_an_error(accumulate: int, backend: str) -> None:
    after, during = (training(backend) for _ in range(2))
    step_in_backward(during.opt, accumulate=accumulate)
    for _ in range(accumulate):
        during.net.loss(0).backward()
    stepped = [p.detach().clone() for p in during.net.parameters()]
    with pytest.raises(RuntimeError, match=rf"accumulate = {accumulate}: call optimizer\.step\(\)"):
        during.net.loss(0).backward()
    assert all(same_bits(p, q) for p, q in zip(during.net.parameters(), stepped, strict=True))
    with pytest.raises(RuntimeError, match=r"zero_grad\(\) drops"):
        during.opt.step()
    during.opt.zero_grad()
    during.opt.step()
    for _ in range(accumulate):
        after.net.loss(0).backward()
    after.opt.step()
    after.opt.zero_grad()
    for run in (after, during):
        train(run, range(STEPS), accumulate)
    assert_same(after, during)


# The ways of an optimizer.


def test_schedulers_closures_and_hooks(backend: str) -> None:
    runs = [training(backend) for _ in range(2)]
    step_in_backward(runs[1].opt)
    orders: list[list[str]] = []
    for net, opt in runs:
        order: list[str] = []
        orders.append(order)
        opt.register_step_pre_hook(lambda *_, order=order: order.append("pre"))
        opt.register_step_post_hook(lambda *_, order=order: order.append("post"))
        scheduler = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=STEPS)
        for t in range(STEPS):

            def closure(t: int = t, net: Net = net, opt: FusedRAdam = opt) -> Tensor:
                opt.zero_grad()
                loss = net.loss(t)
                loss.backward()
                return loss

            assert opt.step(closure) > 0.0
            scheduler.step()
    assert orders[0] == orders[1] == ["pre", "post"] * STEPS
    assert_same(*runs)


def freeze(run: Training, t: int) -> None:
    run.net.up.requires_grad_(t not in (0, 1, 5))


def add_group(run: Training, t: int) -> None:
    if t == 3:
        run.net.late = nn.Parameter(torch.ones(8))
        run.net.norm.register_forward_hook(lambda module, args, out: out * run.net.late)
        run.opt.add_param_group({"params": [run.net.late], "lr": 0.02})


def reload(run: Training, t: int) -> None:
    if t in (2, 7):
        run.opt.load_state_dict(copy.deepcopy(run.opt.state_dict()))
        run.opt.param_groups[0]["lr"] *= 0.5


def edit(run: Training, t: int) -> None:
    p = run.net.down.weight
    if t == 3:
        run.opt.state[p]["exp_avg"] = torch.ones_like(p)
    if t == 5:
        run.opt.state[p]["step"].fill_(2)
    if t == 7:
        run.opt.state.pop(run.net.twice.weight)


def replace(run: Training, t: int) -> None:
    if t == 4:
        old = run.net.up.weight
        run.net.up.weight = nn.Parameter(old.detach() * 2)
        params = run.opt.param_groups[0]["params"]
        index = next(i for i, p in enumerate(params) if p is old)
        params[index] = run.net.up.weight
        run.opt.state[run.net.up.weight] = run.opt.state.pop(old)


def take_out(run: Training, t: int) -> None:
    if t == 4:
        run.opt.param_groups[1]["params"].pop(0)


def transpose(run: Training, t: int) -> None:
    if t == 4:
        run.net.up.weight.data = run.net.up.weight.data.t().contiguous().t()


CHANGES: dict[str, Callable[[Training, int], None]] = {
    "freeze_and_thaw": freeze,
    "add_param_group": add_group,
    "load_state_dict": reload,
    "state_edited": edit,
    "parameter_replaced": replace,
    "parameter_taken_out": take_out,
    "strides_changed": transpose,
}


@pytest.mark.sampled
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_between_iterations(change: Callable[[Training, int], None], backend: str) -> None:
    """The last iteration is in backward again, whatever came before."""
    after, during = (training(backend, weight_decay=0.1) for _ in range(2))
    step_in_backward(during.opt)
    for run in (after, during):
        for t in range(STEPS + 2):
            change(run, t)
            run.net.loss(t).backward()
            if run is during and t == STEPS + 1:
                known = {p for group in run.opt.param_groups for p in group["params"]}
                assert all(p.grad is None for p in known)
            run.opt.step()
            run.opt.zero_grad()
            run.net.zero_grad()
    assert_same(after, during)
