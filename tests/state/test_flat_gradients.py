"""``flatten=True``: gradients that are taken away, replaced, or come back in another layout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from radam_fused import FusedRAdam
from radam_fused.state.flat_buffers import SAMPLE
from tests.support.flat_pairs import (
    MANY,
    assert_side_by_side,
    backward,
    give,
    model_pair,
    noise,
    pair,
    replace,
    same,
    small,
    train,
)
from tests.support.helpers import params_of, same_bits


def test_a_missing_gradient_of_no_elements_shows() -> None:
    """Its buffer has no address to compare."""
    p = torch.nn.Parameter(torch.empty(0))
    opt = FusedRAdam([p], flatten=True)
    opt.step()
    assert opt.state[p]["step"] == 1
    p.grad = None
    opt.step()
    assert opt.state[p]["step"] == 1
    p.grad = torch.empty(0)
    opt.step()
    assert opt.state[p]["step"] == 2


def test_model_zero_grad_sets_none_and_backward_brings_new_gradients() -> None:
    nets, opts = model_pair()
    for t in range(9):
        for net, opt in zip(nets, opts, strict=True):
            net.zero_grad()
            assert all(p.grad is None for p in net.parameters())
            backward(net, t)
            opt.step()
    assert same(*opts)
    assert_side_by_side([p.grad for p in nets[0].parameters()])


@pytest.mark.parametrize("index", [0, 3, 70, MANY - 1])
def test_gradient_none_skips_its_parameter(index: int) -> None:
    """Its value and its step stay, its neighbours go on, and later it comes back."""
    opts = pair(weight_decay=0.1)
    for t in range(12):
        for opt in opts:
            for i, p in enumerate(params_of(opt)):
                if i == index and 2 <= t < 7:
                    p.grad = None
                else:
                    give(p, 1000 * t + i)
            left = params_of(opt)[index].detach().clone()
            opt.step()
            assert same_bits(left, params_of(opt)[index]) == (2 <= t < 7)
    assert same(*opts)
    assert int(opts[0].state[params_of(opts[0])[index]]["step"]) == 7


def test_no_gradient_at_all_is_no_step() -> None:
    opt = FusedRAdam(small(), flatten=True)
    for p in params_of(opt):
        p.grad = None
    before = [p.detach().clone() for p in params_of(opt)]
    opt.step()
    assert {int(state["step"]) for state in opt.state.values()} == {0}
    assert all(same_bits(p, b) for p, b in zip(params_of(opt), before, strict=True))


def test_looking_at_the_state_of_a_parameter_without_one_gives_it_no_gradient() -> None:
    """``opt.state`` is a defaultdict: a look leaves an empty entry."""
    opts = pair(weight_decay=0.1)
    for opt in opts:
        opt.state.pop(params_of(opt)[0], None)  # under ``flatten`` it is there from the start
    for t in range(4):
        for opt in opts:
            params_of(opt)[0].grad = None
            for i, p in enumerate(params_of(opt)[1:]):
                give(p, 1000 * t + i)
            assert opt.state[params_of(opt)[0]] == {}
            opt.step()
    assert same(*opts)


@pytest.mark.parametrize("held", [False, True], ids=["dropped", "held"])
@pytest.mark.parametrize("index", [0, 40, 70, MANY - 1])
def test_gradient_replaced_by_another_tensor(index: int, held: bool) -> None:
    """The step takes the values that p.grad has, wherever it is stored, also while user code holds the old gradient."""
    opts = pair()
    kept = []
    for t in range(9):
        for opt in opts:
            for i, p in enumerate(params_of(opt)):
                give(p, 1000 * t + i)
            if t % 3 == 2:
                p = params_of(opt)[index]
                if held:
                    kept.append(p.grad)
                p.grad = p.grad * -3.0
            opt.step()
        assert same(*opts)


@pytest.mark.parametrize("index", [0, 70])
def test_gradient_set_to_none_while_the_old_one_is_held(index: int) -> None:
    opts = pair(weight_decay=0.1)
    kept = []
    for t in range(6):
        for opt in opts:
            for i, p in enumerate(params_of(opt)):
                give(p, 1000 * t + i)
            if t % 3 == 2:
                kept.append(params_of(opt)[index].grad)
                params_of(opt)[index].grad = None
            opt.step()
        assert same(*opts)


@pytest.mark.parametrize("held", [False, True], ids=["dropped", "held"])
def test_gradients_of_several_tasks_combined(held: bool) -> None:
    """As PCGrad does: gradients of each task apart, None between them, then their combination as p.grad."""
    nets, opts = model_pair()
    kept = []
    for t in range(9):
        for net, opt in zip(nets, opts, strict=True):
            params = list(net.parameters())
            tasks = []
            for task in range(2):
                for p in params:
                    p.grad = None
                backward(net, 10 * t + task)
                tasks.append([p.grad for p in params])
            for p, a, b in zip(params, *tasks, strict=True):
                p.grad = a + 0.5 * b
            if held:
                kept.append(tasks)
            opt.step()
        assert same(*opts)


@pytest.mark.parametrize("layout", ["transposed", "expanded", "sliced"])
def test_gradient_in_another_layout(layout: str) -> None:
    arrange = {
        "transposed": lambda g: g.t().contiguous().t(),
        "expanded": lambda g: g[:1].expand_as(g),
        "sliced": lambda g: torch.stack([g, g])[0],
    }[layout]
    opts = pair(lambda: [nn.Parameter(noise(torch.Size([6, 5]), 1).float()) for _ in range(3)])
    for t in range(8):
        for opt in opts:
            for i, p in enumerate(params_of(opt)):
                p.grad = arrange(noise(p.shape, 10 * t + i).float())
            opt.step()
    assert same(*opts)


def test_float32_gradient_of_a_16_bit_parameter_is_refused() -> None:
    """Rather than rounded into the flat buffer; without flatten the step takes it as it is."""
    opts = pair(lambda: [nn.Parameter(p.detach().bfloat16()) for p in small(4)])
    for opt in opts:
        train(opt, range(2))
        p = params_of(opt)[2]
        p.grad = None
        p.grad_dtype = None
        p.grad = torch.full((3,), 1.0009765625)
    opts[1].step()
    before = [p.detach().clone() for p in params_of(opts[0])]
    with pytest.raises(TypeError, match=r"flatten=True: gradient of .*\[2\] is torch.float32: must be torch.bfloat16"):
        opts[0].step()
    assert all(same_bits(p, b) for p, b in zip(params_of(opts[0]), before, strict=True))


# More tensors than are looked at one by one: what they do is the same, noticed by counting references.


@pytest.fixture
def _counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radam_fused.state.flat_buffers.LOOKED_AT", 0)


@pytest.mark.usefixtures("_counted")
@pytest.mark.parametrize("index", [0, 70])
def test_replaced_storage_is_noticed_in_the_end_while_the_old_one_is_held(index: int) -> None:
    """The count of references stays then; the parameters are looked at in rotation."""
    opt = FusedRAdam(small(), flatten=True)
    train(opt, range(3))
    held = replace(index)(opt)
    with pytest.raises(RuntimeError, match=rf"param_groups\[0\]\['params'\]\[{index}\]"):
        train(opt, range(3, 3 + -(-MANY // SAMPLE)))
    del held


@pytest.mark.usefixtures("_counted")
@pytest.mark.parametrize("index", [0, 40, 70, MANY - 1])
def test_counted_gradient_replaced(index: int) -> None:
    test_gradient_replaced_by_another_tensor(index, held=False)


@pytest.mark.usefixtures("_counted")
@pytest.mark.parametrize("held", [False, True], ids=["dropped", "held"])
def test_counted_gradients_of_several_tasks(held: bool) -> None:
    test_gradients_of_several_tasks_combined(held)


@pytest.mark.usefixtures("_counted")
def test_counted_model_zero_grad() -> None:
    test_model_zero_grad_sets_none_and_backward_brings_new_gradients()


@pytest.mark.usefixtures("_counted")
def test_counted_replacement_in_the_step_after_the_runs_were_made() -> None:
    """The runs are views that come after the gradients were counted; what goes in the next step must still show."""
    for index in range(3):
        opts = pair()
        for t in range(6):
            for opt in opts:
                for i, p in enumerate(params_of(opt)):
                    give(p, 1000 * t + i)
                if t == 1:
                    p = params_of(opt)[50 + index]
                    p.grad = p.grad * -3.0
                opt.step()
            assert same(*opts)
