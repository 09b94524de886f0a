"""Captures of steps that no replay could repeat are refused, and nothing is recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch

from radam_fused.step import compiled, scalars
from tests.support.captured_training import OPTION, OPTIONS, Training, device_of, stories
from tests.support.helpers import same_bits


def refused(training: Training, reason: str, act: Callable[[], Any] | None = None) -> None:
    """A captured step is refused with the reason; nothing is recorded, and nothing is changed."""
    before = [t.clone() for t in training.state()] if training.optimizer.state else []
    with training.device.capture() as graph, pytest.raises(RuntimeError, match=reason):
        (act or training.optimizer.step)()
    assert graph.nodes == []
    after = training.state() if training.optimizer.state else []
    assert all(same_bits(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("options", [o for name, o in OPTIONS.items() if name != "flatten"])
def test_a_first_step_is_refused(options: dict) -> None:
    ours, eager = stories(**options)
    with device_of(ours):
        refused(ours, "first step of a parameter.* Take one step before the capture")
        for training in (ours, eager):
            training.step(0)
        ours.replay(ours.capture(), 1)
        eager.step(1)
        ours.check(eager)


@OPTION
def test_capturable_switched_on_late_is_refused(options: dict) -> None:
    ours, eager = stories(**{**options, "capturable": False, "max_grad_norm": None})
    with device_of(ours):
        for training in (ours, eager):
            training.step(0)
        refused(ours, "capturable = False")
        for training in (ours, eager):
            training.optimizer.param_groups[0]["capturable"] = True
        refused(ours, "first step after capturable = True")
        for training in (ours, eager):
            training.step(1)
        graph = ours.capture()
        for k in range(2, 5):
            ours.replay(graph, k)
            eager.step(k)
        ours.check(eager)


def test_a_rate_in_another_place_is_refused() -> None:
    """Its value would stay that of the capture; before, the norm's kernels had been recorded."""
    ours, _ = stories(max_grad_norm=1.0)
    with device_of(ours):
        ours.step(0)
        ours.optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
        with patch.object(scalars, "_is_on", lambda lr, device: False):
            refused(ours, "lr is a tensor on cpu")


def test_state_that_was_loaded_or_edited_is_refused() -> None:
    """Every replay would lay it out again."""
    ours, _ = stories()
    with device_of(ours):
        ours.step(0)
        entry = ours.optimizer.state[ours.params[0]]
        entry["exp_avg"] = entry["exp_avg"].clone()
        refused(ours, "edited or loaded")
        ours.step(1)
        ours.capture()


def test_new_parameters_are_refused() -> None:
    ours, _ = stories()
    with device_of(ours):
        ours.step(0)
        late = torch.nn.Parameter(torch.ones(9))
        late.grad = torch.ones(9)
        ours.optimizer.add_param_group({"params": [late]})
        refused(ours, "first step of a parameter")


def test_tracing_is_refused() -> None:
    """What torch.compile's first call uploads stays for later calls, which no replay would fill."""
    torch._dynamo.reset()
    ours, eager = stories()
    for training in (ours, eager):
        training.step(0)
    step = torch.compile(ours.optimizer.step, backend="eager")
    with (
        patch.object(compiled, "capturing", lambda device: True),
        pytest.raises(Exception, match=r"torch\.compile traces"),
    ):
        step()
    torch._dynamo.reset()
    for training in (ours, eager):
        training.backward(1)
    step()
    eager.optimizer.step()
    ours.check(eager)
