"""`step_in_backward`: its handle, copies, several optimizers, errors half way, and its cost."""

from __future__ import annotations

import copy
import gc
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam, step_in_backward
from tests.support.helpers import by_pickle, same_bits
from tests.support.small_models import STEPS, Training, assert_same, backward, chain, train, training

# The handle.


def test_remove_in_the_middle_of_training(backend: str) -> None:
    after, during = (training(backend, weight_decay=0.1) for _ in range(2))
    train(after, range(3 * STEPS))
    train(during, range(STEPS))
    with step_in_backward(during.opt):
        train(during, range(STEPS, 2 * STEPS))
    during.net.loss(100 * 2 * STEPS).backward()
    assert during.net.up.weight.grad is not None  # the ordinary way again
    during.opt.step()
    during.opt.zero_grad()
    train(during, range(2 * STEPS + 1, 3 * STEPS))
    assert_same(after, during)


def test_remove_in_the_middle_of_an_iteration(backend: str) -> None:
    """Accumulated gradients are the ordinary step's."""
    after, during = (training(backend) for _ in range(2))
    for run in (after, during):
        train(run, range(STEPS), 2)
    handle = step_in_backward(during.opt, accumulate=2)
    for run in (after, during):
        run.net.loss(1).backward()
    handle.remove()
    for run in (after, during):
        train(run, range(1), 1)
    assert_same(after, during)


def test_remove_is_harmless_twice_and_of_an_older_handle() -> None:
    net = chain(1)
    opt = FusedRAdam(net.parameters(), backend="reference")
    old = step_in_backward(opt)
    old.remove()
    old.remove()
    new = step_in_backward(opt)
    old.remove()
    backward(net)
    assert net[0].weight.grad is None
    new.remove()
    backward(net)
    assert net[0].weight.grad is not None


def test_turned_on_between_backward_and_step(backend: str) -> None:
    after, during = (training(backend) for _ in range(2))
    for run in (after, during):
        run.net.loss(0).backward()
    step_in_backward(during.opt)
    for run in (after, during):
        run.opt.step()
        run.opt.zero_grad()
        train(run, range(1, STEPS))
    assert_same(after, during)


def test_dropped_optimizer_takes_its_hooks_along() -> None:
    net = chain(1, 300)
    opt = FusedRAdam(net.parameters(), backend="reference")
    step_in_backward(opt)
    backward(net, 300)
    opt.step()
    moments = opt.state[net[0].weight]["exp_avg"].untyped_storage()
    before = net[0].weight.detach().clone()
    gc.disable()
    try:
        del opt
        assert torch._C._storage_Use_Count(moments._cdata) == 1
    finally:
        gc.enable()
    backward(net, 300)
    assert same_bits(net[0].weight, before)
    assert net[0].weight.grad is not None


# Copies, and several optimizers.


@pytest.mark.parametrize("copier", [by_pickle, copy.deepcopy], ids=["pickle", "deepcopy"])
def test_copies_step_in_the_ordinary_way(copier: Callable[[Any], Any], backend: str) -> None:
    during = training(backend)
    step_in_backward(during.opt)
    train(during, range(STEPS))
    after = Training(*copier((during.net, during.opt)))
    after.net.loss(100 * STEPS).backward()
    assert after.net.up.weight.grad is not None
    after.opt.step()
    after.opt.zero_grad()
    train(after, range(STEPS + 1, 2 * STEPS))
    train(during, range(STEPS, 2 * STEPS))
    assert during.opt._in_backward is not None
    assert_same(after, during)


def test_disjoint_optimizers_each_in_its_way(backend: str) -> None:
    """One steps in backward, one after two passes of its own, one as ever."""
    nets = [chain(3) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    opts = [[FusedRAdam(layer.parameters(), lr=0.01, backend=backend) for layer in net] for net in nets]
    step_in_backward(opts[1][0])
    step_in_backward(opts[1][1], accumulate=2)
    for net, three in zip(nets, opts, strict=True):
        for _ in range(STEPS):
            for index in (0, 1, 2, 0):
                for _ in range(2 if index == 1 else 1):
                    net.zero_grad() if index != 1 else None
                    for k, layer in enumerate(net):
                        layer.requires_grad_(k == index)
                    backward(net)
                three[index].step()
                three[index].zero_grad()
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert same_bits(p, q)
    assert int(opts[1][1].state[nets[1][1].weight]["step"]) == STEPS


# Errors half way.


def test_error_in_a_hook_leaves_each_parameter_stepped_or_not(backend: str) -> None:
    """A sparse gradient is refused: its parameter, state and count stay, those that came before it are stepped."""
    net = nn.Sequential(nn.Embedding(5, 4, sparse=True), *chain(2))
    opt = FusedRAdam(net.named_parameters(), backend=backend)
    step_in_backward(opt)
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(RuntimeError, match=r"gradient of parameter '0\.weight'.*sparse"):
        net(torch.tensor([1, 2])).square().mean().backward()
    moved = [not same_bits(p, q) for p, q in zip(net.parameters(), before, strict=True)]
    assert moved == [False, True, True, True, True]
    assert net[0].weight.grad is not None
    assert net[0].weight not in opt.state
    assert {int(entry["step"]) for entry in opt.state.values()} == {1}
    with pytest.raises(RuntimeError, match="sparse"):
        opt.step()
    opt.zero_grad()
    opt.step()
    net[0].sparse = False
    net(torch.tensor([1, 2])).square().mean().backward()
    opt.step()
    assert [int(opt.state[p]["step"]) for p in net.parameters()] == [1, 2, 2, 2, 2]


def test_error_of_another_hook_comes_before_the_step() -> None:
    net = chain(1)
    opt = FusedRAdam(net.parameters(), backend="reference")

    def fail(p: Tensor) -> None:
        raise ArithmeticError("not this one")

    other = net[0].weight.register_post_accumulate_grad_hook(fail)
    step_in_backward(opt)
    before = net[0].weight.detach().clone()
    with pytest.raises(ArithmeticError, match="not this one"):
        backward(net)
    assert same_bits(net[0].weight, before)
    other.remove()
    opt.step()  # takes the gradient that is there
    assert int(opt.state[net[0].weight]["step"]) == 1


def test_gradients_of_autograd_grad_and_of_other_leaves_are_nobodys() -> None:
    net = chain(1)
    opt = FusedRAdam(net.parameters(), backend="reference")
    step_in_backward(opt)
    x = torch.ones(2, 4, requires_grad=True)
    torch.autograd.grad(net(x).sum(), list(net.parameters()))
    net(x).sum().backward(inputs=[x])
    with torch.no_grad():
        net(x)
    with torch.inference_mode():
        net(x)
    assert opt.state == {}
    net(x).sum().backward(inputs=[net[0].bias])
    assert list(opt.state) == [net[0].bias]


def test_backward_passes_in_several_threads(backend: str) -> None:
    """As with several devices, each of which runs its part of a backward pass in a thread of its own."""
    nets = [nn.ModuleList(chain(6) for _ in range(4)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    opts = [FusedRAdam(net.parameters(), lr=0.01, backend=backend) for net in nets]
    step_in_backward(opts[1])
    for _ in range(STEPS):
        for part in nets[0]:
            backward(part)
        threads = [threading.Thread(target=backward, args=[part]) for part in nets[1]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(p.grad is None for p in nets[1].parameters())
        for opt in opts:
            opt.step()
            opt.zero_grad()
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert same_bits(p, q)


# Cost.


def calls_of_hooks(length: int, iteration: int, **options: Any) -> Counter[str]:
    """Functions, Python's and C's, that a backward pass calls for a chain of that length, by name."""
    net = chain(length)
    opt = FusedRAdam(net.parameters(), backend="cpu", **options)
    step_in_backward(opt)
    for _ in range(iteration):
        backward(net)
        opt.step()
    loss = net(torch.ones(2, 4)).square().mean()
    calls: Counter[str] = Counter()

    def count(frame: Any, event: str, arg: Any) -> None:
        if event == "call":
            calls[frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name] += 1
        elif event == "c_call":
            calls[arg.__qualname__] += 1

    gc.disable()  # some test libraries have it call back
    sys.setprofile(count)
    try:
        loss.backward()
    finally:
        sys.setprofile(None)
        gc.enable()
    return calls


@pytest.mark.parametrize("iteration", [0, 1], ids=["first", "later"])
@pytest.mark.parametrize("options", [{}, {"capturable": True}], ids=["host", "device"])
def test_cost_of_a_hook_does_not_depend_on_the_number_of_parameters(options: dict[str, Any], iteration: int) -> None:
    few, more, most = (calls_of_hooks(length, iteration, **options) for length in (10, 20, 40))
    one = {name: (more[name] - few[name]) / 20 for name in more}
    assert one["Hooks._on_gradient"] == 1 or sys.version_info < (3, 11)
    assert sum(one.values()) > 20
    assert "unchanged" not in one  # one call, of C, that looks at all parameters
    assert {name: most[name] - more[name] for name in most} == {name: 40 * count for name, count in one.items()}
