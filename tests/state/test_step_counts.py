"""Step counts that user code writes by ways that raise no version counter, and counts that float32 cannot hold."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam, step_in_backward
from radam_fused.backends.ops import OPERATORS
from radam_fused.state.bucket import Bucket
from tests.support.helpers import same_bits
from tests.support.mixed_dtypes import step

WAYS: dict[str, Callable[[Tensor, float], Any]] = {
    "fill_": lambda step, value: step.fill_(value),
    "data_copy_": lambda step, value: step.data.copy_(torch.tensor(value)),
    "numpy": lambda step, value: step.numpy().fill(value),
    "dlpack": lambda step, value: torch.from_dlpack(step).fill_(value),
    "data_assigned": lambda step, value: setattr(step, "data", torch.tensor(value)),
    "set_": lambda step, value: step.set_(torch.tensor(value)),
    "shared": lambda step, value: step.share_memory_().fill_(value),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "cpu": {"backend": "cpu"},
    "reference": {"backend": "reference"},
    "flatten": {"flatten": True},
    "capturable": {"capturable": True},
    "clipped": {"max_grad_norm": 1e9},
    "int8": {"state_dtype": torch.int8},
    "offload": {"offload": True},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def pair(count: int = 3, **options: Any) -> tuple[list[nn.Parameter], FusedRAdam]:
    params = [nn.Parameter(torch.linspace(-1.0, 1.0, 20 + k)) for k in range(count)]
    return params, FusedRAdam(params, lr=0.01, **options)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@each_option
def test_a_written_count_is_honoured(options: dict[str, Any], way: Callable[[Tensor, float], Any]) -> None:
    """As if it had been loaded: the next step's scalars are those of step 41 for one parameter, 8 for the others."""
    params, opt = pair(**options)
    expected, other = pair(**options)
    for t in range(7):
        step(params, opt, t)
        step(expected, other, t)
    way(opt.state[params[1]]["step"], 40.0)
    saved = copy.deepcopy(other.state_dict())
    saved["state"][1]["step"] = torch.tensor(40.0)
    other.load_state_dict(saved)
    for t in range(7, 10):
        step(params, opt, t)
        step(expected, other, t)
    assert [float(opt.state[p]["step"]) for p in params] == [10.0, 43.0, 10.0]
    assert all(same_bits(p, q) for p, q in zip(params, expected, strict=True))


def test_a_count_that_is_not_compared_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: were the counts not compared, the write would have no effect on the parameters."""
    params, opt = pair()
    expected, other = pair()
    for t in range(7):
        step(params, opt, t)
        step(expected, other, t)
    monkeypatch.setattr("radam_fused.state.step_counts.counts_shown", lambda *_: True)
    opt.state[params[1]]["step"].data.fill_(40.0)
    step(params, opt, 7)
    step(expected, other, 7)
    assert same_bits(params[1], expected[1])


@pytest.mark.parametrize("value", [float("nan"), -1.0, 2.5, float("inf")])
def test_what_is_no_count_is_refused(value: float) -> None:
    params, opt = pair()
    step(params, opt, 0)
    opt.state[params[0]]["step"].fill_(value)
    before = [p.detach().clone() for p in params]
    with pytest.raises(ValueError, match=r"'step' is .*: must be a whole number, at least 0"):
        step(params, opt, 1)
    assert all(same_bits(p, q) for p, q in zip(params, before, strict=True))
    opt.state[params[0]]["step"].fill_(1.0)
    step(params, opt, 1)


BIG = float(2**24)


@pytest.mark.parametrize("options", [OPTIONS[k] for k in ("cpu", "reference", "flatten", "capturable", "clipped")])
def test_counts_go_on_beyond_what_float32_holds(options: dict[str, Any]) -> None:
    params, opt = pair(**options)
    for t in range(2):
        step(params, opt, t)
    for p in params:
        opt.state[p]["step"].fill_(BIG)
    for t in range(2, 7):
        step(params, opt, t)
    (bucket,) = opt._bucket_manager.buckets
    assert bucket.counts.taken.tolist() == [BIG + 5.0] * 3
    assert all(float(opt.state[p]["step"]) == float(torch.tensor(BIG + 5.0, dtype=torch.float32)) for p in params)


@pytest.mark.parametrize("edit", ["moments_replaced", "group_added", "in_backward"])
def test_exact_counts_survive_another_layout(edit: str) -> None:
    params, opt = pair()
    step(params, opt, 0)
    for p in params:
        opt.state[p]["step"].fill_(BIG)
    step(params, opt, 1)
    if edit == "moments_replaced":
        opt.state[params[0]]["exp_avg"] = opt.state[params[0]]["exp_avg"].clone()
    elif edit == "group_added":
        opt.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    else:
        step_in_backward(opt)
    step(params, opt, 2)
    assert [count for bucket in opt._bucket_manager.buckets for count in bucket.counts.taken.tolist()][:3] == [
        BIG + 2.0
    ] * 3


def test_stochastic_rounding_differs_in_each_step_beyond_what_float32_holds() -> None:
    """The steps 2^24 + 1 and 2^24 + 2, which are the same in float32, round differently."""
    results = []
    for count in (BIG, BIG + 1.0):
        p = nn.Parameter(torch.full((4096,), 1.0, dtype=torch.bfloat16))
        opt = FusedRAdam([p], lr=1e-3, rounding="stochastic")
        p.grad = torch.ones_like(p)
        opt.step()
        with torch.no_grad():
            p.fill_(1.0)
        opt.state[p]["exp_avg"].fill_(1.0)
        (bucket,) = opt._bucket_manager.buckets
        bucket.counts.assign(0, count)
        opt.step()
        results.append(p.detach().clone())
    assert not torch.equal(*results)
    assert abs(results[0].float().mean() - results[1].float().mean()) < 1e-3


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_scalars_operator_keeps_exact_counts(backend: str) -> None:
    from radam_fused.numerics.scalars import StepScalars, group_scalars
    from radam_fused.options import GROUP_DEFAULTS

    table = torch.tensor([group_scalars(GROUP_DEFAULTS, 1e-3)], dtype=torch.float64)
    taken = torch.tensor([BIG, BIG + 1.0, 7.0], dtype=torch.float64)
    steps = taken.float()
    steps[2] = 50.0  # written by user code
    pairs = torch.tensor([[0, 0], [0, 1], [0, 2]])
    rows, _ = OPERATORS[backend].scalars(table, pairs, torch.ones(3), steps, taken, None, None, 0.0, None, None)
    assert rows[:, StepScalars._fields.index("step")].tolist() == [BIG + 1.0, BIG + 2.0, 51.0]
    assert taken.tolist() == [BIG + 1.0, BIG + 2.0, 51.0]
    assert torch.equal(steps, taken.float())


def test_counts_of_a_bucket_are_compared_without_the_dispatcher() -> None:
    bucket = Bucket([torch.zeros(3), torch.zeros(4)], [0, 0])
    assert not bucket.counts.written()
    bucket.counts.view(1).numpy().fill(3.0)
    assert bucket.counts.written()
    bucket.counts.honour()
    assert bucket.counts.taken.tolist() == [0.0, 3.0]
    assert not bucket.counts.written()
