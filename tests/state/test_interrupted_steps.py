"""A step that an interrupt ends anywhere is done and counted, or neither."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch
from torch import nn

from radam_fused import FusedRAdam
from tests.support.helpers import same_bits
from tests.support.interrupts import Interrupted, signal_at, some_of
from tests.support.mixed_dtypes import give, one_dtype, parameters

# Python itself drops what a handler raises inside of a finalizer.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


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
    for line in some_of(lines[0], 70):
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


@pytest.mark.parametrize("zero_grads", [False, True], ids=["grads_kept", "zero_grads"])
@pytest.mark.parametrize("options", [{"capturable": True}, {"max_grad_norm": 0.5}])
@pytest.mark.parametrize("failing", range(3))
def test_a_bucket_whose_scalars_fail_keeps_the_others_from_their_step(
    failing: int, options: dict[str, Any], zero_grads: bool
) -> None:
    """Where memory runs out for the scalars of one bucket, no bucket was stepped, and no count has moved."""
    params, others = parameters(), parameters()
    opt, expected = (FusedRAdam(some, lr=0.01, zero_grads=zero_grads, **options) for some in (params, others))
    for t in range(2):
        for some, each in ((params, opt), (others, expected)):
            give(some, t)
            each.step()
    give(params, 2)
    before = [(p.detach().clone(), p.grad.clone()) for p in params]
    bucket = opt._bucket_manager.buckets[failing]
    ops = opt._bucket_manager.ops[bucket]

    def no_memory(*args: Any) -> None:
        raise torch.OutOfMemoryError("no memory (played)")

    opt._bucket_manager.ops[bucket] = ops._replace(scalars=no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        opt.step()
    opt._bucket_manager.ops[bucket] = ops
    for p, (value, grad) in zip(params, before, strict=True):
        assert same_bits(p, value)
        assert same_bits(p.grad, grad)
        assert float(opt.state[p]["step"]) == 2.0
    for some, each in ((params, opt), (others, expected)):
        give(some, 2)
        each.step()
    for p, q in zip(params, others, strict=True):
        assert same_bits(p, q)
        assert all(same_bits(value, expected.state[q][name]) for name, value in opt.state[p].items())


def test_a_failing_operator_is_tried_a_bounded_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    params, opt = one_dtype({})
    give(params, 0)
    opt.step()
    (bucket,) = opt._bucket_manager.buckets
    ops = opt._bucket_manager.ops[bucket]
    calls = []

    def failing(*args: Any) -> None:
        calls.append(1)
        raise RuntimeError("a launch failed (played)")

    opt._bucket_manager.ops[bucket] = ops._replace(step=failing, has_pointer_path=False)
    # It says each time that it has repaired something.
    monkeypatch.setattr("radam_fused.step.run.repair_layout", lambda bucket: True)
    bucket.last_plan = None
    give(params, 1)
    with pytest.raises(RuntimeError, match="a launch failed"):
        opt.step()
    assert len(calls) == 2
    assert [float(opt.state[p]["step"]) for p in params] == [1.0] * 3
