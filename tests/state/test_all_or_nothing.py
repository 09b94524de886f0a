"""All or nothing: whatever makes or moves buckets, and a step, is done whole or not at all.

A signal whose handler raises is sent at one line of the package after another, and memory runs out at one allocation
after another. What was interrupted is then tried again: the run must end as one that nothing has interrupted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam, step_in_backward
from radam_fused.state import memory
from tests.support.helpers import same_bits
from tests.support.interrupts import Interrupted, signal_at, some_of
from tests.support.mixed_dtypes import give, parameters

# Python itself drops what a handler raises inside of a finalizer.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


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
    run.opt._bucket_manager.refresh(run.opt.param_groups, run.opt.state)


def add_group(run: Run) -> None:
    if len(run.opt.param_groups) == 1:
        run.opt.add_param_group({"params": [run.extra]})


def in_backward(run: Run) -> None:
    if run.opt._in_backward is None:
        step_in_backward(run.opt)


def place(run: Run) -> None:
    run.opt._bucket_manager.add_new_params()


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
    for line in some_of(total, 60):
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
    for line in some_of(lines[0] - 1, 60):
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
