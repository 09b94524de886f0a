"""Steps in CUDA graphs, on a stand-in for captures: what is captured is right in every replay, or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from radam_fused import FusedRAdam, step_in_backward
from radam_fused import cpp_helpers as host
from radam_fused import device as captures
from radam_fused.step import compiled, scalars
from tests.support.fake_captures import Device, Graph
from tests.support.helpers import same_bits

SIZES = (70, 5000, 3)


class Training:
    """Parameters with gradients in one place, as a graph wants them, and a float learning rate."""

    def __init__(self, backend: str = "cpu", **options: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        self.params = [torch.nn.Parameter(torch.randn(n, generator=generator)) for n in SIZES]
        self.grads = [torch.zeros(n) for n in SIZES]
        for p, grad in zip(self.params, self.grads, strict=True):
            p.grad = grad
        options = {"lr": 0.02, "capturable": True, "weight_decay": 0.1, **options}
        self.optimizer = FusedRAdam(self.params, backend=backend, **options)
        self.grads = [p.grad for p in self.params]
        self.device = Device([t.detach() for t in (*self.params, *self.grads)])

    def backward(self, k: int) -> None:
        """Other gradients, in the same memory."""
        generator = torch.Generator().manual_seed(k + 1)
        for grad in self.grads:
            grad.copy_(torch.randn(grad.shape, generator=generator))

    def has(self, present: list[int] | None) -> None:
        for k, (p, grad) in enumerate(zip(self.params, self.grads, strict=True)):
            p.grad = grad if present is None or k in present else None

    def step(self, k: int, present: list[int] | None = None) -> None:
        self.backward(k)
        self.has(present)
        self.optimizer.step()

    def capture(self, present: list[int] | None = None) -> Graph:
        self.has(present)
        self.add_state()
        with self.device.capture() as graph:
            self.optimizer.step()
        return graph

    def add_state(self) -> None:
        """Lets the device have what the optimizer has made."""
        for bucket in self.optimizer._placement.buckets:
            counts = bucket.counts.shown, bucket.counts.taken
            for buffer in (bucket.exp_avg, bucket.exp_avg_sq, bucket.scales, bucket.residue, *counts):
                if buffer is not None:
                    self.device.add(buffer)
        for flat in self.optimizer._placement._flats.values():
            self.device.add(flat.param)
            self.device.add(flat.grad)

    def replay(self, graph: Graph, k: int) -> None:
        self.backward(k)
        graph.replay()

    def rate(self, lr: float) -> None:
        self.optimizer.param_groups[0]["lr"] = lr

    def state(self) -> list[Tensor]:
        entries = [self.optimizer.state[p] for p in self.params]
        return [*(p.detach() for p in self.params), *(e[n] for e in entries for n in ("step", "exp_avg", "exp_avg_sq"))]

    def check(self, expected: Training) -> None:
        """Every bit of another run."""
        names = [f"{what} {k}" for what in ("parameter", "state") for k in range(9)]
        for name, a, b in zip(names, self.state(), expected.state(), strict=False):
            assert same_bits(a, b), (name, a, b)


@contextmanager
def device_of(training: Training) -> Iterator[None]:
    with training.device.replacing_cuda():
        yield


OPTIONS = {
    "plain": {},
    "clipped": {"max_grad_norm": 0.5},
    "flatten": {"flatten": True},
    "zero_grads": {"zero_grads": True},
    "adam": {"rectification": "none"},
}
OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))


def stories(**options: Any) -> tuple[Training, Training]:
    """Two alike: one that captures, and one that takes every step eagerly."""
    return Training(**options), Training(**options)


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


def refused(training: Training, reason: str, act: Callable[[], Any] | None = None) -> None:
    """A captured step is refused with the reason; nothing is recorded, and nothing is changed."""
    before = [t.clone() for t in training.state()] if training.optimizer.state else []
    with training.device.capture() as graph, pytest.raises(RuntimeError, match=reason):
        (act or training.optimizer.step)()
    assert graph.nodes == []
    after = training.state() if training.optimizer.state else []
    assert all(same_bits(a, b) for a, b in zip(before, after, strict=True))


def test_a_first_step_under_flatten_is_captured() -> None:
    """Its buffers, and so the state, are made with the optimizer: nothing is new in the capture."""
    ours, eager = stories(flatten=True)
    with device_of(ours):
        graph = ours.capture()
        for k in range(3):
            ours.replay(graph, k)
            eager.step(k)
        ours.check(eager)


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
        with patch.object(scalars, "_lies_on", lambda lr, device: False):
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
        with patch.object(host, "capturing", lambda device, recording=recording: recording):
            assert host.upload(tensor, torch.device("cuda")) is there
        assert any(kept is pinned for kept in captures._kept) == recording
        assert any(kept is there for kept in captures._kept) == recording


def test_a_capture_runs_nothing_and_a_replay_everything() -> None:
    """The stand-in itself."""
    p = torch.ones(3)
    device = Device([p])
    with device.capture() as graph:
        q = p * 2.0
        p += 1.0
    assert p.tolist() == [1.0] * 3
    assert q.isnan().all()
    for k in range(1, 3):
        q.fill_(5.0)
        graph.replay()
        assert p.tolist() == [1.0 + k] * 3
        assert q.tolist() == [2.0 * k] * 3


def test_memory_that_nothing_keeps_is_noticed() -> None:
    table = torch.ones(3)
    device = Device([table])
    with device.capture() as graph:
        table * 2.0
    graph.replay()
    del table
    with pytest.raises(AssertionError, match="freed"):
        graph.replay()
