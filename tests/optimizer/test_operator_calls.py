"""One operator call for each bucket in each step, and the backend that it goes to."""

from __future__ import annotations

import pytest
import torch

import radam_fused
from radam_fused import FusedRAdam
from tests.support.parameter_sets import CountCalls, both_ways, parameters, set_gradients, train


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
