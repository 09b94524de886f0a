"""What fails: an exception at a random line, memory that runs out, refused values. Done whole, or not at all."""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from torch import Tensor, nn

from radam_fused.state import memory
from tests.properties.mirror import done, group_of, params_of, picks
from tests.properties.models import hyperparameters, kinds, seeds, specs
from tests.properties.persistence import Persistence
from tests.support.interrupts import Interrupted, signal_at

lines = st.integers(1, 400)


@contextmanager
def failing_allocation(which: int) -> Iterator[None]:
    """The `which`-th allocation of a buffer, or of memory by these functions of torch, fails.

    But for 16 bytes an entry that are allocated when the state is first shown, after the step (docs/reliability.md).
    """
    made = itertools.count(1)

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def function(*args: Any, **kwargs: Any) -> Any:
            table_of_views = sys._getframe(1).f_code.co_filename.endswith("views.py")
            if not table_of_views and next(made) == which:
                raise torch.OutOfMemoryError("no memory (played)")
            return real(*args, **kwargs)

        return function

    with (
        mock.patch.object(memory, "zeros", failing(memory.zeros)),
        mock.patch.object(torch, "empty", failing(torch.empty)),
        mock.patch.object(torch, "zeros", failing(torch.zeros)),
        mock.patch.object(torch, "tensor", failing(torch.tensor)),
    ):
        yield


BAD_VALUES: dict[str, list[Any]] = {
    "lr": [-1.0, float("nan"), "0.1", None],
    "betas": [(1.0, 0.9), (0.9, -0.1), (0.9,), 0.9],
    "eps": [-1e-8, float("inf"), float("nan")],
    "weight_decay": [-0.1, "much"],
    "maximize": ["yes", None],
    "rectification": ["second_order", 1],
    "rho_threshold": [float("nan"), 3.0],
    "degenerated_to_sgd": ["no", 2],
}
BAD_ENTRIES: list[tuple[str, Callable[[Tensor], Any]]] = [
    ("exp_avg", lambda value: torch.zeros(value.numel() + 1)),
    ("exp_avg_sq", lambda value: value.to(torch.complex64)),
    ("exp_avg", lambda value: value.to("meta")),
    ("step", lambda value: torch.zeros(2)),
    ("exp_avg", lambda value: "moments"),
]
REFUSED = (ValueError, TypeError, RuntimeError, NotImplementedError, KeyError)


class Faults(Persistence):
    """Everything of its bases, and what fails."""

    def finish_ours(self) -> None:
        """The mirror follows where ours was stepped; the invariants say whether it was all or nothing."""
        if any(self.count(self.ours, p) != self.count(self.mirror, q) for p, q in self.pairs):
            done["faults after which a step was done"] += 1
            self.mirror.step()
        else:
            done["faults after which nothing was"] += 1

    @rule(seed=seeds, kind=kinds, line=lines)
    def interrupt_step(self, seed: int, kind: str, line: int) -> None:
        self.give(seed, kind, set())
        try:
            with signal_at(line):
                self.ours.step()
        except Interrupted:
            done["steps interrupted"] += 1
        self.finish_ours()

    # The temporaries of other backends are as many as operations; offload makes its views within each bucket's step.
    @precondition(lambda self: self.place["backend"] == "cpu" and not self.place.get("offload"))
    @rule(seed=seeds, which=st.integers(1, 12))
    def run_out_of_memory(self, seed: int, which: int) -> None:
        """In a step that was taken before: what a first one allocates after a bucket is in docs/reliability.md."""
        self.give(seed, "normal", set())
        self.step_again()
        self.give(seed + 1, "normal", set())
        try:
            with failing_allocation(which):
                self.ours.step()
        except (torch.OutOfMemoryError, RuntimeError):
            done["steps without memory"] += 1
        self.finish_ours()

    @rule(line=lines, memory_runs_out=st.booleans())
    def interrupt_load(self, line: int, memory_runs_out: bool) -> None:
        state = copy.deepcopy(self.ours.state_dict())
        try:
            with failing_allocation(line % 12 + 1) if memory_runs_out else signal_at(line):
                self.ours.load_state_dict(state)
        except (Interrupted, torch.OutOfMemoryError, RuntimeError):
            done["loads that failed"] += 1

    @precondition(lambda self: len(self.ours.param_groups) < 5)
    @rule(data=st.data(), values=hyperparameters, line=lines)
    def interrupt_new_group(self, data: Any, values: dict[str, Any], line: int) -> None:
        added = data.draw(st.lists(specs(self.dtypes), min_size=1, max_size=2))
        groups = len(self.ours.param_groups)
        try:
            with signal_at(line):
                self.ours.add_param_group({"params": [spec.make() for spec in added], **values})
        except Interrupted:
            done["groups that failed"] += 1
        if len(self.ours.param_groups) > groups:
            self.mirror.add_param_group({"params": [spec.make() for spec in added], **values})
        self.attach()

    # Errors: refused, and nothing changed.

    def refused(self, action: Callable[[], Any]) -> None:
        before = [p.detach().clone() for p in params_of(self.ours)]
        try:
            action()
        except REFUSED:
            done["values refused"] += 1
        else:
            raise AssertionError("this must be an error")
        for p, value in zip(params_of(self.ours), before, strict=True):
            assert torch.equal(p.detach().nan_to_num(), value.nan_to_num())

    @rule(index=picks, name=st.sampled_from(sorted(BAD_VALUES)), which=picks, seed=seeds)
    def bad_hyperparameter(self, index: int, name: str, which: int, seed: int) -> None:
        group = group_of(self.ours, index)
        if not any(p.requires_grad for p in group["params"]):
            return
        self.give(seed, "normal", set())
        right = group[name]
        group[name] = BAD_VALUES[name][which % len(BAD_VALUES[name])]
        self.refused(self.ours.step)
        group[name] = right

    @rule(index=picks, which=picks, name=st.sampled_from(sorted(BAD_VALUES)))
    def bad_new_group(self, index: int, which: int, name: str) -> None:
        value = BAD_VALUES[name][which % len(BAD_VALUES[name])]
        params = [nn.Parameter(torch.zeros(3)), *([params_of(self.ours)[0]] if index == 0 else [])]
        self.refused(lambda: self.ours.add_param_group({"params": params, name: value}))

    @rule(index=picks, which=picks)
    def bad_checkpoint(self, index: int, which: int) -> None:
        state = copy.deepcopy(self.ours.state_dict())
        entries = [entry for entry in state["state"].values() if entry]
        if not entries:
            return
        entry = entries[index % len(entries)]
        name, spoil = BAD_ENTRIES[which % len(BAD_ENTRIES)]
        if name not in entry or not isinstance(entry[name], Tensor):
            return
        entry[name] = spoil(entry[name])
        self.refused(lambda: self.ours.load_state_dict(state))

    @rule(index=picks, seed=seeds)
    def bad_gradient(self, index: int, seed: int) -> None:
        self.give(seed, "normal", set())
        p, _ = self.pick(index)
        if not p.requires_grad or p.dim() == 0:
            return
        right, p.grad = p.grad, None
        p.grad = gradient_that_is_sparse(p)
        self.refused(self.ours.step)
        p.grad = right
        self.attach()


def gradient_that_is_sparse(p: Tensor) -> Tensor:
    return torch.zeros(p.shape, dtype=p.dtype).to_sparse()
