"""All or nothing: whatever makes or moves buckets, and a step, is done whole or not at all.

A signal whose handler raises is sent at one line of the package after another, and memory runs out at one allocation
after another. What was interrupted is then tried again: the run must end as one that nothing has interrupted.
"""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam, step_in_backward
from radam_fused.state import memory
from tests.support.helpers import same_bits
from tests.support.interrupts import Interrupted, signal_at

# Python itself drops what a handler raises inside of a finalizer.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def parameters() -> list[nn.Parameter]:
    shapes: list[tuple[tuple[int, ...], torch.dtype]] = [
        ((3, 5), torch.float32),
        ((7,), torch.float64),
        ((4, 2), torch.bfloat16),
        ((6,), torch.float32),
    ]
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape, dtype in shapes]


def give(params: list[nn.Parameter], t: int) -> None:
    generator = torch.Generator().manual_seed(t)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


class Run:
    """An optimizer over parameters of three dtypes, so of several buckets."""

    def __init__(self, steps: int, **options: Any) -> None:
        self.params = parameters()
        self.opt = FusedRAdam(self.params, lr=0.01, **options)
        self.extra = nn.Parameter(torch.linspace(0.0, 1.0, 9))
        for t in range(steps):
            give(self.params, t)
            self.opt.step()
        give(self.params, steps)

    def snapshot(self) -> list[Any]:
        state = [(k, v.clone()) for p in self.params for k, v in self.opt.state.get(p, {}).items() if k != "step"]
        counts = [float(self.opt.state[p]["step"]) if self.opt.state.get(p) else 0.0 for p in self.params]
        return [[p.detach().clone() for p in self.params], counts, state, len(self.opt.param_groups)]

    def finish(self) -> list[Tensor]:
        """Two more steps, and all that then counts."""
        for t in range(90, 92):
            give(self.params, t)
            self.opt.step()
        return [*self.params, *(v for p in self.params for v in self.opt.state[p].values())]


def load(run: Run) -> None:
    run.opt.load_state_dict(copy.deepcopy(run.opt.state_dict()))


def replace_moments(run: Run) -> None:
    for p in run.params:
        run.opt.state[p]["exp_avg"] = run.opt.state[p]["exp_avg"].clone()
    run.opt._placement.refresh(run.opt.param_groups, run.opt.state)


def add_group(run: Run) -> None:
    if len(run.opt.param_groups) == 1:
        run.opt.add_param_group({"params": [run.extra]})


def in_backward(run: Run) -> None:
    if run.opt._in_backward is None:
        step_in_backward(run.opt)


def place(run: Run) -> None:
    run.opt._placement.place_arrivals()


LAYOUTS: dict[str, tuple[Callable[[Run], None], int, dict[str, Any]]] = {
    "first_buckets": (place, 0, {}),
    "first_buckets_int8": (place, 0, {"rounding": "stochastic"}),
    "load_state_dict": (load, 2, {}),
    "load_state_dict_flatten": (load, 2, {"flatten": True}),
    "moments_replaced": (replace_moments, 2, {}),
    "moments_replaced_flatten": (replace_moments, 2, {"flatten": True}),
    "group_added": (add_group, 2, {}),
    "group_added_flatten": (add_group, 2, {"flatten": True}),
    "step_in_backward": (in_backward, 2, {}),
    "capturable": (place, 0, {"capturable": True}),
}


@pytest.mark.parametrize(("change", "steps", "options"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_interrupted_anywhere(change: Callable[[Run], None], steps: int, options: dict[str, Any]) -> None:
    expected = Run(steps, **options)
    with signal_at(0) as lines:
        change(expected)
    total = lines[0]
    final = [t.detach().clone() for t in expected.finish()]
    interrupted = 0
    for line in range(1, total + 1, max(1, total // 60)):
        run = Run(steps, **options)
        before = run.snapshot()
        try:
            with signal_at(line):
                change(run)
        except Interrupted:
            interrupted += 1
            after = run.snapshot()
            assert all(same_bits(p, q) for p, q in zip(before[0], after[0], strict=True)), line
            assert before[1] == after[1], line
        change(run)
        assert all(same_bits(a, b) for a, b in zip(run.finish(), final, strict=True)), line
    assert interrupted > 20


@pytest.mark.parametrize("where", range(1, 9))
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_for_which_there_is_no_memory(name: str, where: int, monkeypatch: pytest.MonkeyPatch) -> None:
    change, steps, options = LAYOUTS[name]
    expected = Run(steps, **options)
    change(expected)
    final = [t.detach().clone() for t in expected.finish()]
    run = Run(steps, **options)
    before = run.snapshot()
    real, made = memory.zeros, [0]

    def zeros(*args: Any) -> Tensor:
        made[0] += 1
        if made[0] == where:
            raise torch.OutOfMemoryError("no memory (played)")
        return real(*args)

    monkeypatch.setattr(memory, "zeros", zeros)
    try:
        change(run)
    except torch.OutOfMemoryError:
        after = run.snapshot()
        assert before[1] == after[1]
        assert before[3] == after[3]
        assert all(same_bits(p, q) for p, q in zip(before[0], after[0], strict=True))
        assert all(a[0] == b[0] and same_bits(a[1], b[1]) for a, b in zip(before[2], after[2], strict=True))
    monkeypatch.setattr(memory, "zeros", real)
    change(run)
    assert all(same_bits(a, b) for a, b in zip(run.finish(), final, strict=True))


@pytest.mark.parametrize("flatten", [False, True], ids=["tensors", "flatten"])
def test_a_constructor_interrupted_anywhere_leaves_the_parameters(flatten: bool) -> None:
    params = parameters()
    give(params, 0)
    before = [(p.data_ptr(), p.detach().clone(), p.grad) for p in params]
    with signal_at(0) as lines:
        FusedRAdam(parameters(), flatten=flatten)
    for line in range(1, lines[0], max(1, lines[0] // 60)):
        try:
            with signal_at(line):
                FusedRAdam(params, flatten=flatten)
        except Interrupted:
            pass
        else:
            continue
        done = flatten and any(p.data_ptr() != address for p, (address, _, _) in zip(params, before, strict=True))
        assert done or all(p.grad is grad for p, (_, _, grad) in zip(params, before, strict=True))
        assert all(same_bits(p, value) for p, (_, value, _) in zip(params, before, strict=True))
        if done:  # it came to its end before the signal did
            params = parameters()
            give(params, 0)
            before = [(p.data_ptr(), p.detach().clone(), p.grad) for p in params]


STEPS: dict[str, dict[str, Any]] = {
    "cpu": {},
    "reference": {"backend": "reference"},
    "flatten": {"flatten": True},
    "clipped": {"max_grad_norm": 0.5},
    "capturable": {"capturable": True},
    "offload": {"offload": True},
    "zero_grads": {"zero_grads": True},
    "bf16": {"state_dtype": torch.float32, "master_weights": "kahan"},
}


def one_dtype(options: dict[str, Any]) -> tuple[list[nn.Parameter], FusedRAdam]:
    params = [nn.Parameter(torch.linspace(-1.0, 1.0, 30 + k)) for k in range(3)]
    return params, FusedRAdam(params, lr=0.01, **options)


@pytest.mark.parametrize("buckets", [1, 3])
@pytest.mark.parametrize("options", STEPS.values(), ids=STEPS)
def test_a_step_interrupted_anywhere_is_done_and_counted_or_neither(options: dict[str, Any], buckets: int) -> None:
    def prepared() -> tuple[list[nn.Parameter], FusedRAdam]:
        if buckets == 1:
            params, opt = one_dtype(options)
        else:
            params = parameters()
            opt = FusedRAdam(params, lr=0.01, **options)
        for t in range(3):
            give(params, t)
            opt.step()
        give(params, 3)
        return params, opt

    params, opt = prepared()
    with signal_at(0) as lines:
        opt.step()
    seen = set()
    for line in range(1, lines[0] + 1, max(1, lines[0] // 70)):
        params, opt = prepared()
        before = [p.detach().clone() for p in params]
        try:
            with signal_at(line):
                opt.step()
        except Interrupted:
            moved = [not same_bits(p, q) for p, q in zip(params, before, strict=True)]
            counted = [float(opt.state[p]["step"]) - 3.0 for p in params]
            assert counted == [float(m) for m in moved], line
            assert len(set(moved)) == 1, line
            seen.add(moved[0])
        (shown,) = {float(opt.state[p]["step"]) for p in params}
        for t in range(4, 6):
            give(params, t)
            opt.step()
        assert {float(opt.state[p]["step"]) for p in params} == {shown + 2.0}
    assert seen == {False, True}


def test_without_deferred_handlers_a_part_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: with the handlers run at once, some line leaves parameters moved and not counted."""
    monkeypatch.setattr("radam_fused.step.interrupts.DEFERRED", [])
    with pytest.raises(AssertionError):
        test_a_step_interrupted_anywhere_is_done_and_counted_or_neither({"backend": "reference"}, 1)


def test_handlers_are_as_before_and_run_once() -> None:
    params, opt = one_dtype({"max_grad_norm": 1.0})
    arrived = []
    before = signal.signal(signal.SIGUSR2, lambda *_: arrived.append(1))
    try:
        mine = signal.getsignal(signal.SIGUSR2)
        give(params, 0)
        opt.register_step_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGUSR2))
        opt.step()
        assert arrived == [1]
        assert signal.getsignal(signal.SIGUSR2) is mine
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_failing_operator_is_tried_a_bounded_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    params, opt = one_dtype({})
    give(params, 0)
    opt.step()
    (bucket,) = opt._placement.buckets
    ops = opt._placement.ops[bucket]
    calls = []

    def failing(*args: Any) -> None:
        calls.append(1)
        raise RuntimeError("a launch failed (played)")

    opt._placement.ops[bucket] = ops._replace(step=failing, by_addresses=False)
    monkeypatch.setattr(type(opt._placement), "amend", lambda self, b: True)  # says each time that it has repaired
    bucket._plan = None
    give(params, 1)
    with pytest.raises(RuntimeError, match="a launch failed"):
        opt.step()
    assert len(calls) == 2
    assert [float(opt.state[p]["step"]) for p in params] == [1.0] * 3


@pytest.mark.parametrize("flatten", [False, True], ids=["tensors", "flatten"])
def test_a_load_that_a_hook_fails_changes_nothing(flatten: bool) -> None:
    """At its very end, when parameters and state have their new places already."""
    run, expected = Run(2, flatten=flatten), Run(2, flatten=flatten)
    older = copy.deepcopy(Run(1, flatten=flatten).opt.state_dict())

    def failing(_: Any) -> None:
        raise RuntimeError("played")

    handle = run.opt.register_load_state_dict_post_hook(failing)
    with pytest.raises(RuntimeError, match="played"):
        run.opt.load_state_dict(older)
    handle.remove()
    assert all(same_bits(a, b) for a, b in zip(run.finish(), expected.finish(), strict=True))
    run.opt.load_state_dict(older)
    assert {float(run.opt.state[p]["step"]) for p in run.params} == {1.0}
