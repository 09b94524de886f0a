"""torch.inference_mode around any part of an optimizer's life: it steps, loads and is copied as outside of it."""

from __future__ import annotations

import copy
import io
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam
from tests.support.helpers import same_bits

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "flatten": {"flatten": True},
    "int8": {"state_dtype": torch.int8},
    "split": {"master_weights": "split"},
    "fp32 master": {"master_weights": "fp32"},
    "kahan": {"master_weights": "kahan"},
    "stochastic": {"rounding": "stochastic"},
    "clipped": {"max_grad_norm": 0.1},
    "capturable": {"capturable": True},
    "zero_grads": {"zero_grads": True},
    "offload": {"offload": True},
    "tensor lr": {"lr": torch.tensor(0.1)},
}
BF16 = ("split", "fp32 master", "kahan", "stochastic")
EVENTS = ("make", "first step", "later step", "group", "load", "copy", "zero")


def inside(event: str, chosen: tuple[str, ...]) -> Any:
    return torch.inference_mode() if event in chosen else nullcontext()


def run(options: dict[str, Any], dtype: torch.dtype, inference: bool, chosen: tuple[str, ...]) -> list[Tensor]:
    """The life of an optimizer, with the chosen events in inference mode."""
    with torch.inference_mode(inference):
        params = [torch.linspace(-1, 1, n).to(dtype) for n in (5000, 7)]
    with inside("make", chosen):
        optimizer = FusedRAdam(params[:1], **{"lr": 0.1, **options})
    for t in range(7):
        if t == 2:
            with inside("group", chosen):
                optimizer.add_param_group({"params": params[1:]})
        if t == 3:
            with inside("load", chosen):
                saved = io.BytesIO()
                torch.save(optimizer.state_dict(), saved)
                saved.seek(0)
                optimizer.load_state_dict(torch.load(saved))
        if t == 5:
            with inside("copy", chosen):
                params, optimizer = copy.deepcopy((params, optimizer))
        held = [p for group in optimizer.param_groups for p in group["params"]]
        with inside("first step" if t == 0 else "later step", chosen):
            for p in held:
                p.grad = torch.sin(torch.arange(p.numel()) * (t + 1.0)).to(dtype)
            optimizer.step()
        with inside("zero", chosen):
            optimizer.zero_grad()
    optimizer.rectification_state()
    states = [value for p in params for value in optimizer.state[p].values()]
    assert not any(value.is_inference() for value in states)
    assert inference or "copy" in chosen or not any(p.is_inference() for p in params)
    states[1].view(-1)[:1].zero_()  # outside of the mode: user code may write the state
    return [*params, *states]


@pytest.mark.sampled
@pytest.mark.parametrize("inference", [False, True], ids=["params", "inference params"])
@pytest.mark.parametrize("chosen", [("make",), ("first step",), ("later step",), EVENTS[2:], EVENTS], ids=str)
@pytest.mark.parametrize("options", OPTIONS)
def test_every_event_in_inference_mode(options: str, chosen: tuple[str, ...], inference: bool, backend: str) -> None:
    if backend == "triton" and chosen != EVENTS:
        return
    given = {"backend": backend, **OPTIONS[options]}
    if options == "offload":
        given["backend"] = "auto"
    dtype = torch.bfloat16 if options in BF16 else torch.float32
    expected = run(given, dtype, False, ())
    found = run(given, dtype, inference, chosen)
    assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))


def test_a_module_trains_on_after_a_step_in_inference_mode() -> None:
    def train(mode: bool) -> Tensor:
        torch.manual_seed(0)
        model = nn.Linear(5, 3)
        optimizer = FusedRAdam(model.parameters(), lr=0.1)
        for t in range(4):
            model(torch.linspace(-1, t, 10).view(2, 5)).square().sum().backward()
            with torch.inference_mode(mode and t % 2 == 0):
                optimizer.step()
            optimizer.zero_grad()
        return model.weight.detach()

    assert same_bits(train(True), train(False))


def test_the_mode_and_gradients_are_as_before_a_step() -> None:
    p = torch.ones(3)
    optimizer = FusedRAdam([p])
    p.grad = torch.ones(3)
    with torch.inference_mode():
        optimizer.step()
        assert torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()
        p.grad = torch.ones(4)[:3].to(torch.int32).float().to_sparse()
        with pytest.raises(RuntimeError, match="sparse"):
            optimizer.step()
        assert torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


def test_a_closure_runs_in_the_callers_mode() -> None:
    p = torch.ones(3)
    optimizer = FusedRAdam([p])
    seen = []

    def closure() -> float:
        seen.append(torch.is_inference_mode_enabled())
        p.grad = torch.ones(3)
        return 1.0

    with torch.inference_mode():
        optimizer.step(closure)
    optimizer.step(closure)
    assert seen == [True, False]
