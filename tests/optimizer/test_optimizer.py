"""`FusedRAdam` as a torch.optim optimizer: state, hooks, copies, and parameters that come, go and change."""

from __future__ import annotations

import copy
import gc
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

import radam_fused
from radam_fused import FusedRAdam
from tests.support.helpers import filled, same_bits

both_ways = pytest.mark.parametrize("flatten", [False, True], ids=["apart", "flatten"])


def set_gradients(params: Iterable[Tensor], seed: int) -> None:
    """A new gradient for every parameter; the same for the same seed and shapes."""
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        if p.grad is None:
            p.grad = grad
        else:
            p.grad.copy_(grad)


def train(opt: torch.optim.Optimizer, steps: range) -> None:
    params = [p for group in opt.param_groups for p in group["params"]]
    for t in steps:
        set_gradients(params, t)
        opt.step()


def parameters(*shapes: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes]


def all_same_bits(a: Iterable[Tensor], b: Iterable[Tensor]) -> bool:
    return all(same_bits(x, y) for x, y in zip(a, b, strict=True))


def model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


class CountCalls(TorchDispatchMode):
    """Counts this package's operators, and the tensors of their parameter lists."""

    def __enter__(self) -> CountCalls:
        self.calls: Counter[str] = Counter()
        self.tensors = 0
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "radam_fused":
            self.calls[func._opname] += 1
            self.tensors += len(args[0])
        return func(*args, **(kwargs or {}))


# State.


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


# Editing the state, as users do.


def edit_twins(edit: Callable[[torch.optim.Optimizer, nn.Parameter], None]) -> list[list[nn.Parameter]]:
    """Parameters of ours and of torch's after 8 steps, an edit of the state of the middle one, and 8 more."""
    result = []
    for make in (FusedRAdam, torch.optim.RAdam):
        params = parameters((3,), (5, 2), (4,))
        opt = make(params, lr=0.02)
        train(opt, range(8))
        edit(opt, params[1])
        train(opt, range(8, 16))
        result.append(params)
    return result


def set_entry(**values: float) -> Callable[[torch.optim.Optimizer, nn.Parameter], None]:
    def edit(opt: torch.optim.Optimizer, p: nn.Parameter) -> None:
        opt.state[p] = {key: torch.full_like(opt.state[p][key], value) for key, value in values.items()}

    return edit


EDITS: dict[str, Callable[[torch.optim.Optimizer, nn.Parameter], Any]] = {
    "step_filled": lambda opt, p: opt.state[p]["step"].fill_(2),
    "step_assigned": lambda opt, p: opt.state[p].update(step=torch.tensor(2.0)),
    "exp_avg_zeroed": lambda opt, p: opt.state[p]["exp_avg"].zero_(),
    "exp_avg_sq_scaled": lambda opt, p: opt.state[p]["exp_avg_sq"].mul_(9.0),
    "exp_avg_assigned": lambda opt, p: opt.state[p].update(exp_avg=torch.ones_like(p)),
    "entry_assigned": set_entry(step=20, exp_avg=0.5, exp_avg_sq=2.0),
    "entry_deleted": lambda opt, p: opt.state.pop(p),
    "entry_emptied": lambda opt, p: opt.state[p].clear(),
    "all_cleared": lambda opt, p: opt.state.clear(),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_edited_state_is_honoured(edit: Callable) -> None:
    for p, q in zip(*edit_twins(edit), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EDITS)
def test_every_edit_changes_the_trajectory(name: str) -> None:
    """The negative control of `test_edited_state_is_honoured`: ignoring the edit would be noticed."""
    edited = edit_twins(EDITS[name])[1][1]
    unedited = edit_twins(lambda opt, p: None)[1][1]
    assert (edited - unedited).abs().max() > 1e-4


@both_ways
def test_cleared_state_starts_anew(flatten: bool) -> None:
    params = parameters((3,), (5, 2))
    opt = FusedRAdam(params, flatten=flatten)
    train(opt, range(9))
    opt.state.clear()
    fresh = [nn.Parameter(p.detach().clone()) for p in params]
    for each in (opt, FusedRAdam(fresh, flatten=flatten)):
        train(each, range(9, 18))
    assert all_same_bits(params, fresh)
    assert [int(s["step"]) for s in opt.state.values()] == [9, 9]


def densify(opt: torch.optim.Optimizer, index: int) -> nn.Parameter:
    """What Gaussian splatting does: a longer parameter in the place of the old, its moments moved and extended."""
    group = opt.param_groups[index]
    old = group["params"][0]
    state = opt.state.pop(old)
    for key in ("exp_avg", "exp_avg_sq"):
        state[key] = torch.cat([state[key], torch.zeros(2, *old.shape[1:])])
    new = nn.Parameter(torch.cat([old.detach(), torch.ones(2, *old.shape[1:])]))
    group["params"][0] = new
    opt.state[new] = state
    return new


@both_ways
def test_parameters_replaced_with_moved_state(flatten: bool) -> None:
    trained = []
    for make in (lambda groups: FusedRAdam(groups, flatten=flatten), torch.optim.RAdam):
        params = parameters((6, 3), (6, 1))
        opt = make([{"params": [p], "lr": 0.01 * (i + 1)} for i, p in enumerate(params)])
        train(opt, range(8))
        new = densify(opt, 0)
        train(opt, range(8, 16))
        assert new.shape == (8, 3)
        assert int(opt.state[new]["step"]) == 16
        assert len(opt.state) == 2
        trained.append([new, params[1], opt.state[new]["exp_avg"]])
    for p, q in zip(*trained, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@both_ways
def test_parameter_replaced_by_one_of_the_same_shape(flatten: bool) -> None:
    """The new one is trained from its own start, with neither the old values nor the state that nobody moved."""
    params = parameters((6, 3), (4,))
    opt = FusedRAdam(params, flatten=flatten)
    train(opt, range(8))
    new = nn.Parameter(torch.ones(6, 3))
    opt.param_groups[0]["params"][0] = new
    opt.state.pop(params[0])
    left = params[0].detach().clone()
    alone = nn.Parameter(torch.ones(6, 3))
    train(opt, range(8, 16))
    train(FusedRAdam([alone, nn.Parameter(torch.zeros(4))]), range(8, 16))
    assert same_bits(new, alone)
    assert same_bits(params[0], left)


@both_ways
def test_parameter_removed_from_its_group(flatten: bool) -> None:
    params = parameters((6, 3), (4,))
    opt = FusedRAdam(params, flatten=flatten)
    train(opt, range(3))
    removed = opt.param_groups[0]["params"].pop(0)
    before = removed.detach().clone(), params[1].detach().clone()
    train(opt, range(3, 5))
    assert same_bits(removed, before[0])
    assert not same_bits(params[1], before[1])


# Hooks, names, and the other ways in.


def test_step_hooks() -> None:
    opt = FusedRAdam(parameters((3,)))
    order = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: order.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: order.append("global post")),
        opt.register_step_pre_hook(lambda o, args, kwargs: order.append(("pre", o is opt, args, kwargs))),
        opt.register_step_post_hook(lambda o, args, kwargs: order.append(("post", len(o.state)))),
    ]
    try:
        train(opt, range(1))
    finally:
        for handle in handles:
            handle.remove()
    assert order == ["global pre", ("pre", True, (opt,), {}), ("post", 1), "global post"]
    opt.step()
    assert len(order) == 4


def test_step_pre_hook_may_replace_the_closure() -> None:
    opt = FusedRAdam(parameters((3,)))
    opt.register_step_pre_hook(lambda o, args, kwargs: ((args[0], lambda: 17.0), {}))
    assert opt.step() == 17.0


def test_state_dict_hooks() -> None:
    opt = FusedRAdam(parameters((3,)))
    order = []
    opt.register_state_dict_pre_hook(lambda o: order.append("pre"))
    opt.register_state_dict_post_hook(lambda o, state_dict: {**state_dict, "extra": 5})
    opt.register_load_state_dict_pre_hook(lambda o, state_dict: order.append(("load", state_dict["extra"])))
    opt.register_load_state_dict_post_hook(lambda o: order.append("loaded"))
    opt.load_state_dict(opt.state_dict())
    assert order == ["pre", ("load", 5), "loaded"]


def test_load_state_dict_hook_may_replace_what_is_loaded() -> None:
    opt = FusedRAdam(parameters((3,)))

    def halve(_: torch.optim.Optimizer, state_dict: dict) -> dict:
        groups = [{**group, "lr": group["lr"] / 2} for group in state_dict["param_groups"]]
        return {**state_dict, "param_groups": groups}

    opt.register_load_state_dict_pre_hook(halve)
    opt.load_state_dict(opt.state_dict())
    assert opt.param_groups[0]["lr"] == 5e-4


@both_ways
def test_profiler_shows_the_step_under_torchs_names(flatten: bool) -> None:
    opt = FusedRAdam(parameters((3,)), flatten=flatten)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(opt, range(1))
        opt.zero_grad()
    names = {event.key for event in profile.key_averages()}
    assert {"Optimizer.step#FusedRAdam.step", "Optimizer.zero_grad#FusedRAdam.zero_grad"} <= names


def test_repr() -> None:
    lines = repr(FusedRAdam(parameters((3,)), lr=0.25, rho_threshold=4.0)).splitlines()
    assert lines[:2] == ["FusedRAdam (", "Parameter Group 0"]
    assert {"    lr: 0.25", "    rho_threshold: 4.0", "    rectification: first_order"} <= set(lines)


def test_named_parameters() -> None:
    net = model()
    opt = FusedRAdam(net.named_parameters())
    assert opt.param_groups[0]["params"] == list(net.parameters())
    assert opt.state_dict()["param_groups"][0]["param_names"] == ["0.weight", "0.bias", "2.weight", "2.bias"]


INPUTS: dict[str, Callable[[nn.Module], Any]] = {
    "generator": lambda net: net.parameters(),
    "iterator_of_groups": lambda net: iter([{"params": net[0].parameters()}, {"params": net[2].parameters()}]),
    "group_of_one_tensor": lambda net: [{"params": p} for p in net.parameters()],
    "named": lambda net: net.named_parameters(),
    "named_groups": lambda net: [{"params": net.named_parameters(), "lr": 1e-3}],
}


@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS)
def test_ways_to_pass_parameters(make: Callable) -> None:
    nets = model(), model()
    train(FusedRAdam(make(nets[0])), range(8))
    train(FusedRAdam(list(nets[1].parameters())), range(8))
    assert all_same_bits(nets[0].parameters(), nets[1].parameters())
    assert not all_same_bits(nets[0].parameters(), model().parameters())


def test_tied_parameters_take_one_step() -> None:
    net = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    net[1].weight = net[0].weight
    opt = FusedRAdam(net.parameters())
    net(torch.arange(5)).square().mean().backward()
    opt.step()
    assert net[0].weight is net[1].weight
    assert [int(s["step"]) for s in opt.state.values()] == [1]


# Copies.


def by_pickle(pair: Any) -> Any:
    return pickle.loads(pickle.dumps(pair))


@both_ways
@pytest.mark.parametrize("copier", [by_pickle, copy.deepcopy], ids=["pickle", "deepcopy"])
@pytest.mark.parametrize("when", [0, 3, 9], ids=lambda n: f"after_{n}")
def test_copy_of_model_and_optimizer_goes_on_with_the_same_bits(when: int, copier: Callable, flatten: bool) -> None:
    net = model()
    opt = FusedRAdam(net.parameters(), lr=0.01, weight_decay=0.1, rho_threshold=4.0, flatten=flatten)
    train(opt, range(when))
    net2, opt2 = copier((net, opt))
    assert {map(id, net2.parameters())} != {map(id, net.parameters())}
    assert [*map(id, opt2.param_groups[0]["params"])] == [*map(id, net2.parameters())]
    before = [p.detach().clone() for p in net.parameters()]
    train(opt2, range(when, when + 8))
    assert all_same_bits(net.parameters(), before)
    train(opt, range(when, when + 8))
    assert all_same_bits(net.parameters(), net2.parameters())
    moments = [[o.state[p]["exp_avg_sq"] for p in o.param_groups[0]["params"]] for o in (opt, opt2)]
    assert all_same_bits(*moments)
    assert opt2.state_dict()["param_groups"] == opt.state_dict()["param_groups"]


def test_copy_without_the_moments_is_noticed() -> None:
    """The negative control of the test above."""
    net = model()
    train(opt := FusedRAdam(net.parameters(), lr=0.01), range(9))
    net2, opt2 = copy.deepcopy((net, opt))
    opt2.state.clear()
    for each in (opt, opt2):
        train(each, range(9, 17))
    assert not all_same_bits(net.parameters(), net2.parameters())


@pytest.mark.parametrize("copier", [by_pickle, copy.deepcopy], ids=["pickle", "deepcopy"])
def test_copy_keeps_the_backend(copier: Callable) -> None:
    opt = copier(FusedRAdam(parameters((3,)), backend="reference"))
    with CountCalls() as count:
        train(opt, range(1))
    assert count.calls == {"step_reference": 1}


# One operator call a bucket and step.


def calls_of_a_step(opt: FusedRAdam) -> dict[str, int]:
    train(opt, range(2))
    with CountCalls() as count:
        train(opt, range(2, 3))
    return dict(count.calls)


@both_ways
@pytest.mark.parametrize("tensors", [1, 70])
@pytest.mark.parametrize("groups", [1, 35])
def test_one_call_a_step(tensors: int, groups: int, flatten: bool) -> None:
    params = parameters(*[(i % 9 + 1,) for i in range(tensors * groups)])
    opt = FusedRAdam(
        [{"params": params[i::groups], "lr": 1e-3 * (i + 1)} for i in range(groups)], backend="cpu", flatten=flatten
    )
    assert calls_of_a_step(opt) == {"step_native": 1}


@both_ways
def test_one_call_a_dtype(flatten: bool) -> None:
    params = [
        p for dtype in (torch.float32, torch.bfloat16, torch.float64) for p in parameters((3,), (4,), dtype=dtype)
    ]
    assert calls_of_a_step(FusedRAdam(params, backend="cpu", flatten=flatten)) == {"step_native": 3}


def test_one_call_with_steps_of_their_own() -> None:
    params = parameters(*[(3,)] * 20)
    opt = FusedRAdam(params, backend="cpu")
    for t in range(20):
        for p in params:
            p.grad = None
        set_gradients(params[: t + 1], t)
        with CountCalls() as count:
            opt.step()
        assert count.calls == {"step_native": 1}


def test_no_call_without_gradients() -> None:
    opt = FusedRAdam(parameters((3,), (4,)))
    with CountCalls() as count:
        opt.step()
    assert not count.calls


# Backends.


def test_available_backends_names_them_all_with_reasons() -> None:
    found = radam_fused.available_backends()
    assert set(found) == {"cuda", "triton", "cpu", "reference"}
    assert found["reference"] is None
    assert found["cpu"] is None
    assert all(reason is None or len(reason) > 10 for reason in found.values())


def test_auto_takes_the_cpu_backend_for_the_cpu() -> None:
    assert calls_of_a_step(FusedRAdam(parameters((3,)))) == {"step_native": 1}


STEP_OF = {"cpu": "step_native", "reference": "step_reference"}


@pytest.mark.parametrize("name", STEP_OF)
def test_environment_variable_chooses_under_auto(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RADAM_FUSED_BACKEND", name)
    assert calls_of_a_step(FusedRAdam(parameters((3,)))) == {STEP_OF[name]: 1}


def test_argument_prevails_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RADAM_FUSED_BACKEND", "reference")
    assert calls_of_a_step(FusedRAdam(parameters((3,)), backend="cpu")) == {"step_native": 1}


# Tensors of all sorts.


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
    for params, twin in zip(mixed, alone, strict=True):
        assert all_same_bits(params, twin)
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
        for params, lay in zip(nets, (layout, lambda g: layout(g).contiguous()), strict=True):
            params[0].grad = None
            set_gradients(params, t)
            params[0].grad = lay(params[0].grad)
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
