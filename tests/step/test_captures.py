"""Steps in CUDA graphs, on a stand-in for captures: every replay computes what an eager step would."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch

from radam_fused import device as captures
from radam_fused import step_in_backward
from radam_fused.step import scalars
from tests.support.captured_training import OPTION, Training, device_of, stories


@OPTION
def test_a_graph_for_each_shape(options: dict) -> None:
    """Two graphs, schedulers between, eager steps among the replays: as in eager steps, bit for bit."""
    ours, eager = stories(**options)
    with device_of(ours):
        for k in range(4):
            for training in (ours, eager):
                training.rate(0.02 * 0.9**k)
                training.step(k)
        first = ours.capture()
        ours.rate(0.01)  # the scheduler
        second = ours.capture()
        assert ours.device.uploads > 0  # of the second graph's hyperparameters
        for k in range(4, 12):
            which = k % 3
            rate = (0.02 * 0.9**3, 0.01, 0.005)[which]
            eager.rate(rate)
            eager.step(k)
            if which < 2:
                ours.replay((first, second)[which], k)
            else:
                ours.rate(rate)
                ours.step(k)
        ours.check(eager)


def test_an_eager_step_before_the_first_replay() -> None:
    """What the capture has uploaded is filled by its replays alone."""
    ours, eager = stories()
    with device_of(ours):
        for training in (ours, eager):
            training.step(0)
            training.rate(0.01)
        graph = ours.capture()
        for training in (ours, eager):
            training.step(1)
        ours.check(eager)
        ours.replay(graph, 2)
        eager.step(2)
        ours.check(eager)


def test_tables_kept_from_a_capture_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: a cache that keeps what a capture uploads."""
    ours, eager = stories()
    with device_of(ours):
        for training in (ours, eager):
            training.step(0)
            training.rate(0.01)
        ours.has(None)
        with ours.device.capture(), patch.object(scalars, "capturing", lambda device: False):
            ours.optimizer.step()
        for training in (ours, eager):
            training.step(1)
        with pytest.raises(AssertionError, match="parameter"):
            ours.check(eager)


@OPTION
@pytest.mark.parametrize("absent_in_the_graph", [True, False], ids=["graph_without_one", "eager_without_one"])
def test_gradients_missing_from_some_steps(options: dict, absent_in_the_graph: bool) -> None:
    """Each parameter goes on from its own count, whichever graph or eager step has left it out."""
    ours, eager = stories(**options)
    with device_of(ours):
        for training in (ours, eager):
            training.step(0)
        whole = ours.capture()
        part = ours.capture([0, 2]) if absent_in_the_graph else None
        ours.has(None)
        for k in range(1, 13):
            present = [0, 2] if k % 3 == 1 else None
            eager.step(k, present)
            if present is None and k % 2:
                ours.replay(whole, k)
            elif present is None or part is None:
                ours.step(k, present)
            else:
                ours.replay(part, k)
        counts = [ours.optimizer.state[p]["step"].item() for p in ours.params]
        assert counts == [13.0, 9.0, 13.0]
        ours.check(eager)


def test_counts_written_before_and_between() -> None:
    """Step counts that user code writes count in the next replay; the capture does not wait to read them."""
    ours, eager = stories()
    with device_of(ours):
        for training in (ours, eager):
            training.step(0)
            training.optimizer.state[training.params[1]]["step"].fill_(40.0)
        graph = ours.capture()
        for k in range(1, 4):
            ours.replay(graph, k)
            eager.step(k)
        for training in (ours, eager):
            training.step(9)
        ours.check(eager)
        for training in (ours, eager):
            training.optimizer.state[training.params[0]]["step"].fill_(7.0)
        ours.replay(graph, 4)
        eager.step(4)
        for training in (ours, eager):
            training.step(5)
        ours.check(eager)


def test_counts_written_beside_a_graph_that_leaves_one_out() -> None:
    """Its replays part the counts again after these were read."""
    ours, eager = stories()
    with device_of(ours):
        for training in (ours, eager):
            training.step(0)
        part = ours.capture([0, 2])
        for training in (ours, eager):
            for p in training.params:
                training.optimizer.state[p]["step"].fill_(5.0)
            training.step(1)
        ours.replay(part, 2)
        eager.step(2, [0, 2])
        for training in (ours, eager):
            training.step(3)
        ours.check(eager)


def test_a_rate_on_the_device_changes_between_replays() -> None:
    ours, eager = stories(lr=torch.tensor(0.02))
    with device_of(ours):
        for training in (ours, eager):
            training.step(0)
        ours.device.add(ours.optimizer.param_groups[0]["lr"])
        graph = ours.capture()
        for k in range(1, 6):
            for training in (ours, eager):
                training.optimizer.param_groups[0]["lr"].fill_(0.02 / k)
            ours.replay(graph, k)
            eager.step(k)
        ours.check(eager)


def test_a_first_step_under_flatten_is_captured() -> None:
    """Its buffers, and so the state, are made with the optimizer: nothing is new in the capture."""
    ours, eager = stories(flatten=True)
    with device_of(ours):
        graph = ours.capture()
        for k in range(3):
            ours.replay(graph, k)
            eager.step(k)
        ours.check(eager)


def test_steps_in_backward() -> None:
    """A bucket for each parameter: the first step is refused, later ones are captured with the backward pass."""
    ours, eager = stories()
    with device_of(ours), step_in_backward(ours.optimizer), step_in_backward(eager.optimizer):

        def backward(training: Training) -> None:
            sum((p * g).sum() for p, g in zip(training.params, training.grads, strict=True)).backward()

        for training in (ours, eager):
            training.has([])
        with ours.device.capture(), pytest.raises(RuntimeError, match="first step of a parameter"):
            backward(ours)
        assert not ours.optimizer.state
        ours.optimizer.zero_grad()
        ours.optimizer.step()
        for k in range(2):
            for training in (ours, eager):
                training.backward(k)
                backward(training)
                training.optimizer.step()
        ours.add_state()
        with ours.device.capture() as graph:
            backward(ours)
            ours.optimizer.step()
        for k in range(2, 5):
            ours.replay(graph, k)
            eager.backward(k)
            backward(eager)
            eager.optimizer.step()
        ours.check(eager)


def test_upload_keeps_what_a_replay_reads() -> None:
    """The pinned memory as well: the allocator would hand it out again, and each replay copies from it."""
    for recording in (True, False):
        there = object()
        pinned = SimpleNamespace(to=lambda device, non_blocking, there=there: there)
        tensor = SimpleNamespace(pin_memory=lambda pinned=pinned: pinned)
        with patch.object(captures, "capturing", lambda device, recording=recording: recording):
            assert captures.upload(tensor, torch.device("cuda")) is there
        assert any(kept is pinned for kept in captures._kept) == recording
        assert any(kept is there for kept in captures._kept) == recording
