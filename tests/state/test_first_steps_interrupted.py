"""An interrupted first step, and one in a hook of backward: moved, counted, shown and freed, or nothing of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from radam_fused import FusedRAdam, step_in_backward
from radam_fused.backends.operator_args import StepArgs
from radam_fused.backends.reference import step as reference
from radam_fused.numerics.layout import layout_hash
from radam_fused.numerics.scalars import RECTIFIED, StepScalars
from tests.support.helpers import same_bits
from tests.support.interrupts import Interrupted, signal_at, some_of
from tests.support.mixed_dtypes import give, one_dtype

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

OPTIONS: dict[str, dict[str, Any]] = {
    "cpu": {},
    "reference": {"backend": "reference"},
    "flatten": {"flatten": True},
    "capturable": {"capturable": True},
}


def counts(params: list[nn.Parameter], opt: FusedRAdam) -> list[float]:
    """What a checkpoint holds, 0 where it has none."""
    state = opt.state_dict()["state"]
    return [float(state[k]["step"]) if k in state else 0.0 for k in range(len(params))]


def moved(params: list[nn.Parameter], before: list[Tensor]) -> list[float]:
    return [float(not same_bits(p, q)) for p, q in zip(params, before, strict=True)]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_an_interrupted_first_step_is_in_the_checkpoint_or_was_not_taken(options: dict[str, Any]) -> None:
    params, opt = one_dtype(options)
    give(params, 0)
    with signal_at(0) as lines:
        opt.step()
    seen = set()
    for line in some_of(lines[0], 400):
        params, opt = one_dtype(options)
        give(params, 0)
        before = [p.detach().clone() for p in params]
        try:
            with signal_at(line):
                opt.step()
        except Interrupted:
            assert counts(params, opt) == moved(params, before), line
            seen |= set(moved(params, before))
    assert seen == {0.0, 1.0}


@pytest.mark.parametrize("steps", [0, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize("options", [OPTIONS[k] for k in ("cpu", "reference", "capturable")])
def test_an_interrupted_hook_leaves_no_gradient_that_has_been_stepped(options: dict[str, Any], steps: int) -> None:
    def prepared() -> tuple[list[nn.Parameter], FusedRAdam]:
        params, opt = one_dtype(options)
        step_in_backward(opt)
        for _ in range(steps):
            sum((p * p).sum() for p in params).backward()
            opt.step()
        return params, opt

    params, opt = prepared()
    with signal_at(0) as lines:
        sum((p * p).sum() for p in params).backward()
    seen = set()
    for line in some_of(lines[0], lines[0] if steps else 300):
        params, opt = prepared()
        before = [p.detach().clone() for p in params]
        try:
            with signal_at(line):
                sum((p * p).sum() for p in params).backward()
        except Interrupted:
            stepped = moved(params, before)
            assert [n - steps if n else 0.0 for n in counts(params, opt)] == stepped, line
            assert all(p.grad is None for p, m in zip(params, stepped, strict=True) if m), line
            seen |= set(stepped)
    assert seen == {0.0, 1.0}


class _NoMemoryAt(TorchDispatchMode):
    """Fails one of the operations that make a tensor."""

    def __init__(self, where: int) -> None:
        super().__init__()
        self._where, self.made = where, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func._schema.is_mutable:
            self.made += 1
            if self.made == self._where:
                raise torch.OutOfMemoryError("no memory (played)")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["plain", "stored"])
def test_the_reference_writes_nothing_where_memory_runs_out(dtype: torch.dtype) -> None:
    def tensors() -> tuple[list[Any], Tensor, Tensor]:
        params = [torch.linspace(-1.0, 1.0, 30), torch.linspace(-1.0, 1.0, 40).view(4, 10)]
        return params, torch.zeros(512, dtype=dtype), torch.zeros(512, dtype=dtype)

    segments = torch.tensor([(0, layout_hash([30], [1])), (256, layout_hash([4, 10], [10, 1]))])
    row = StepScalars(*[0.0] * len(StepScalars._fields))._replace(
        update_rule=RECTIFIED,
        grad_scale_factor=1.0,
        one_minus_beta1=0.1,
        one_minus_beta2=0.001,
        beta2=0.999,
        step_size=0.01,
        eps=1.0,
    )
    rows = torch.tensor([row], dtype=torch.float64)

    def attempt(where: int) -> tuple[bool, int, bool]:
        params, m, v = tensors()
        before = [t.clone() for t in (*params, m, v)]
        mode, failed = _NoMemoryAt(where), False
        try:
            with mode:
                grads = [torch.ones_like(p) for p in params]
                mode.made = 0
                reference.step(StepArgs(params, grads, m, v, segments, torch.zeros(2, dtype=torch.int64), rows))
        except torch.OutOfMemoryError:
            failed = True
        written = not all(same_bits(a, b) for a, b in zip(before, (*params, m, v), strict=True))
        return failed, mode.made, written

    _, total, written = attempt(0)
    assert written
    failures = [attempt(where) for where in range(3, total + 1)]
    assert sum(failed for failed, _, _ in failures) > 10
    assert not any(written for failed, _, written in failures if failed)
