"""``flatten=True``: parameters and gradients are views of flat buffers, whatever is done to them between steps."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from radam_fused import FusedRAdam
from radam_fused.flat import LOOKED_AT, SAMPLE
from tests.support.helpers import filled, same_bits

LAYOUTS = ["size_0", "size_1", "size_3", "0-d", "size_257", "transposed", "channels_last", "matrix", "strided"]
MANY = 100
"""More parameters than a step looks at one by one."""


def noise(shape: torch.Size, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def give(p: Tensor, seed: int) -> None:
    """A gradient, into the one that is there or as a new tensor."""
    value = noise(p.shape, seed).to(p.dtype)
    if p.grad is None:
        p.grad = value
    else:
        p.grad.copy_(value)


def params_of(opt: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in opt.param_groups for p in group["params"]]


def train(opt: torch.optim.Optimizer, steps: range) -> None:
    for t in steps:
        for i, p in enumerate(params_of(opt)):
            give(p, 1000 * t + i)
        opt.step()


def small(count: int = MANY, size: int = 3) -> list[nn.Parameter]:
    return [nn.Parameter(noise(torch.Size([size]), i).float()) for i in range(count)]


def pair(make: Callable[[], list[nn.Parameter]] = small, **options: Any) -> list[FusedRAdam]:
    """An optimizer with flatten and one without, over equal parameters."""
    return [FusedRAdam(make(), lr=0.01, flatten=flatten, **options) for flatten in (True, False)]


def same(a: torch.optim.Optimizer, b: torch.optim.Optimizer) -> bool:
    return all(
        same_bits(p, q) and a.state.get(p, {}).get("step") == b.state.get(q, {}).get("step")
        for p, q in zip(params_of(a), params_of(b), strict=True)
    )


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 4))


def model_pair() -> tuple[list[nn.Module], list[FusedRAdam]]:
    """Two equal models, with flatten and without."""
    nets = [model(), model()]
    return nets, [FusedRAdam(n.parameters(), lr=0.01, flatten=f) for n, f in zip(nets, (True, False), strict=True)]


def backward(net: nn.Module, t: int) -> Tensor:
    loss = net(noise(torch.Size([8, 6]), t).float()).square().sum()
    loss.backward()
    return loss


# What it promises.


def assert_side_by_side(tensors: list[Tensor]) -> None:
    """Each in a storage of its own elements alone, at aligned places one after the other."""
    full = [t for t in tensors if t.numel()]
    assert all(t.untyped_storage().nbytes() == t.numel() * t.element_size() for t in full)
    ends = [t.data_ptr() + t.numel() * t.element_size() for t in full]
    gaps = [after.data_ptr() - end for end, after in zip(ends[:-1], full[1:], strict=True)]
    assert all(0 <= gap < 256 * full[0].element_size() for gap in gaps)


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


# zero_grad.


@pytest.mark.parametrize("set_to_none", [True, False], ids=["set_to_none", "set_to_zero"])
def test_zero_grad_zeroes_in_place(set_to_none: bool) -> None:
    params = small(5)
    opt = FusedRAdam(params, flatten=True)
    train(opt, range(1))
    views = [p.grad for p in params]
    assert all(view.all() for view in views)
    opt.zero_grad(set_to_none=set_to_none)
    for p, view in zip(params, views, strict=True):
        assert p.grad.data_ptr() == view.data_ptr()
        assert not view.any()


class CountOperators(TorchDispatchMode):
    def __enter__(self) -> CountOperators:
        self.names: list[str] = []
        self.tensors = 0
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(f"{func.namespace}.{func._opname}")
        if func.namespace == "radam_fused":
            self.tensors += len(args[0]) + len(args[1])
        return func(*args, **(kwargs or {}))


def test_zero_grad_is_one_memset() -> None:
    opt = FusedRAdam(small(), flatten=True)
    train(opt, range(2))
    with CountOperators() as count:
        opt.zero_grad()
    assert [name for name in count.names if name.startswith("aten.")] == ["aten.zero_"]


@pytest.mark.parametrize("replaced", [False, True], ids=["in_place", "replaced"])
def test_zero_grad_after_gradients_were_taken_away(replaced: bool) -> None:
    """It zeroes what p.grad is, also where that has become another tensor; a None stays None."""
    params = small(4)
    opt = FusedRAdam(params, flatten=True)
    train(opt, range(1))
    params[1].grad = None
    if replaced:
        params[2].grad = torch.ones(3)
    opt.zero_grad()
    assert params[1].grad is None
    assert not any(p.grad.any() for p in params if p.grad is not None)


# A step costs the same for one tensor or ten thousand.


@pytest.mark.parametrize("groups", [1, 5])
def test_operator_gets_a_tensor_a_group_not_a_tensor_a_parameter(groups: int) -> None:
    received = []
    for count in (50, 500):
        params = small(count)
        size = count // groups
        opt = FusedRAdam(
            [{"params": params[i : i + size], "lr": 1e-3 + i / count} for i in range(0, count, size)], flatten=True
        )
        train(opt, range(3))
        with CountOperators() as counted:
            opt.step()
        received.append((counted.tensors, len(counted.names)))
    assert received[0] == received[1]
    assert received[0][0] == 2 * groups


def calls_of_a_step(count: int, flatten: bool) -> int:
    opt = FusedRAdam(small(count), flatten=flatten)
    train(opt, range(3))
    calls = 0

    def tally(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(tally)
    try:
        opt.step()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize(
    ("few", "many"), [(64, LOOKED_AT), (2 * LOOKED_AT, 4 * LOOKED_AT)], ids=["looked_at", "counted"]
)
def test_python_calls_do_not_grow_with_the_tensors(few: int, many: int) -> None:
    calls = calls_of_a_step(few, flatten=True)
    assert calls_of_a_step(many, flatten=True) <= calls + 10  # beyond 512 views their references are counted
    assert calls < 1500


# Gradients that are taken away, come back, or lie elsewhere.


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
    """The step takes the values that p.grad has, wherever they lie, also while somebody holds the old gradient."""
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
    lay = {
        "transposed": lambda g: g.t().contiguous().t(),
        "expanded": lambda g: g[:1].expand_as(g),
        "sliced": lambda g: torch.stack([g, g])[0],
    }[layout]
    opts = pair(lambda: [nn.Parameter(noise(torch.Size([6, 5]), 1).float()) for _ in range(3)])
    for t in range(8):
        for opt in opts:
            for i, p in enumerate(params_of(opt)):
                p.grad = lay(noise(p.shape, 10 * t + i).float())
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


# Parameters that are taken away.


def double(opt: FusedRAdam) -> None:
    for p in params_of(opt):
        p.grad = None
    nn.ParameterList(params_of(opt)).to(torch.float64)


def replace(index: int) -> Callable[[FusedRAdam], Any]:
    def take(opt: FusedRAdam) -> Any:
        p = params_of(opt)[index]
        held = p.detach()
        p.data = p.data.clone()
        return held

    return take


def replace_and_drop(index: int) -> Callable[[FusedRAdam], Any]:
    return lambda opt: replace(index)(opt) is None


TAKEN: dict[str, tuple[Callable[[FusedRAdam], Any], int]] = {
    "first": (replace_and_drop(0), 0),
    "last": (replace_and_drop(MANY - 1), MANY - 1),
    "model_to_float64": (double, 0),
}


@pytest.mark.parametrize(("take", "index"), TAKEN.values(), ids=TAKEN)
def test_replaced_parameter_storage_is_an_error_that_names_it(take: Callable, index: int) -> None:
    opt = FusedRAdam(small(), flatten=True)
    train(opt, range(3))
    held = take(opt)
    for i, p in enumerate(params_of(opt)):
        give(p, i)
    before = copy.deepcopy([[p.detach(), opt.state[p]] for p in params_of(opt)])
    with pytest.raises(RuntimeError, match=rf"flatten=True: .*param_groups\[0\]\['params'\]\[{index}\].*flatten=False"):
        opt.step()
    for p, (value, state) in zip(params_of(opt), before, strict=True):
        assert same_bits(p, value)
        assert all(same_bits(opt.state[p][key], state[key]) for key in state)
    del held


def test_weights_swapped_and_swapped_back_between_steps() -> None:
    """As for an evaluation with averaged weights."""
    opts = pair()
    for opt in opts:
        train(opt, range(3))
        for p in params_of(opt):
            own = p.data
            p.data = torch.zeros_like(own)
            p.data = own
        train(opt, range(3, 6))
    assert same(*opts)


def one_tensor() -> list[nn.Parameter]:
    values = torch.ones(4)
    return [nn.Parameter(values), nn.Parameter(torch.ones(2)), nn.Parameter(values)]


def overlapping() -> list[nn.Parameter]:
    values = torch.ones(6)
    return [nn.Parameter(values[:4]), nn.Parameter(torch.ones(2)), nn.Parameter(values[2:])]


@pytest.mark.parametrize("make", [one_tensor, overlapping], ids=["same", "overlapping"])
def test_shared_memory_is_refused(make: Callable) -> None:
    params = make()
    addresses = [p.data_ptr() for p in params]
    with pytest.raises(ValueError, match=r"flatten=True: .*\[2\].*\[0\] share memory; .*flatten=False"):
        FusedRAdam(params, flatten=True)
    assert [p.data_ptr() for p in params] == addresses


def test_memory_shared_with_an_earlier_group_is_refused() -> None:
    """Copied into a buffer of its own, the parameter would silently be tied no longer."""
    params = small(2)
    opt = FusedRAdam([params[0]], flatten=True)
    params[1].data = params[0].data
    with pytest.raises(ValueError, match="share memory"):
        opt.add_param_group({"params": [params[1]]})
    assert len(opt.param_groups) == 1


def test_neighbours_in_one_storage_are_no_shared_memory() -> None:
    """The negative control of the tests above."""
    values = torch.ones(6)
    opt = FusedRAdam([nn.Parameter(values[:3]), nn.Parameter(values[3:])], flatten=True)
    train(opt, range(2))
    assert values.tolist() == [1.0] * 6


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


# More tensors than are looked at one by one: what they do is the same, noticed by counting references.


@pytest.fixture
def _counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radam_fused.flat.LOOKED_AT", 0)


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
