"""FakeTensorMode, in which tools estimate memory: every option steps, counts and shows its state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode

from radam_fused import FusedRAdam, step_in_backward
from radam_fused.backends import backend_for
from tests.support.option_sets import BF16
from tests.support.option_sets import OPTIONS as COMMON

OPTIONS = {**COMMON, "reference": {"backend": "reference"}, "tensor_lr": {"lr": torch.tensor(0.1)}}


def given(options: str) -> dict[str, Any]:
    found = dict(OPTIONS[options])
    if isinstance(found.get("lr"), Tensor):
        found["lr"] = torch.tensor(0.1)  # made in the mode
    return found


def shapes(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [
        {name: (value.dtype, tuple(value.shape), value.device, value.stride()) for name, value in entry.items()}
        for entry in optimizer.state.values()
    ]


def life(options: str, steps: int = 3) -> list[Any]:
    """What a model and its optimizer go through; the layout of the state at the end."""
    dtype = torch.bfloat16 if options in BF16 else torch.float32
    model = nn.Sequential(nn.Linear(100, 60, dtype=dtype), nn.Linear(60, 3, dtype=dtype))
    optimizer = FusedRAdam(model[0].parameters(), **given(options))
    for t in range(steps):
        if t == 1:
            optimizer.add_param_group({"params": list(model[1].parameters())})
        loss = model(torch.ones(3, 100, dtype=dtype)).sum()
        if options == "differentiable":  # parameters that require a gradient are no leaves there
            for p in model.parameters():
                p.requires_grad_(False)
                p.grad = torch.ones_like(p)
        else:
            loss.backward()
        optimizer.step()
        if t < steps - 1:
            optimizer.zero_grad()
    if options != "tensor_lr":  # torch cannot copy a fake one
        optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    optimizer.step(lambda: 1.0)
    optimizer.zero_grad()
    return shapes(optimizer)


@pytest.mark.sampled
@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_in_the_mode(options: str) -> None:
    with FakeTensorMode():
        found = life(options)
    assert found == life(options)
    assert len(found) == 4


@pytest.mark.sampled
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("inside", ["nothing", "optimizer", "step"])
def test_fake_parameters_outside_of_their_mode(inside: str, options: str) -> None:
    from contextlib import nullcontext

    mode = FakeTensorMode()
    dtype = torch.bfloat16 if options in BF16 else torch.float32
    with mode:
        params = [torch.ones(n, dtype=dtype) for n in (5000, 7)]
        grads = [torch.ones(n, dtype=dtype) for n in (5000, 7)]
        options_here = given(options)
    with mode if inside == "optimizer" else nullcontext():
        optimizer = FusedRAdam(params, **options_here)
    for _ in range(3):
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad
        with mode if inside == "step" else nullcontext():
            optimizer.step()
    assert len(optimizer.state) == 2
    states = [v for e in optimizer.state.values() for k, v in e.items() if (options, k) != ("differentiable", "step")]
    assert all(isinstance(v, FakeTensor) for v in states)


@pytest.mark.parametrize("options", ["plain", "int8", "clipped", "capturable"])
def test_a_device_that_is_not_there(options: str) -> None:
    with FakeTensorMode(), torch.device("cuda"):
        params = [torch.ones(60, 100), torch.ones(7)]
        optimizer = FusedRAdam(params, backend="reference", **OPTIONS[options])
        for _ in range(2):
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
            optimizer.zero_grad()
    states = [v for e in optimizer.state.values() for k, v in e.items() if k != "step"]
    assert {v.device.type for v in states} == {"cuda"}


def test_no_memory_is_taken() -> None:
    """The state of a terabyte of parameters."""
    with FakeTensorMode():
        p = torch.ones(2**38)
        optimizer = FusedRAdam([p])
        for _ in range(2):
            p.grad = torch.ones(2**38)
            optimizer.step()
    assert optimizer.state[p]["exp_avg"].numel() == 2**38


@pytest.mark.parametrize("options", ["plain", "flatten", "int8", "clipped", "reference"])
def test_mem_tracker_finds_the_state(options: str) -> None:
    from torch.distributed._tools.mem_tracker import MemTracker

    def bytes_of_state(make: Any) -> float:
        with FakeTensorMode():
            model = nn.Linear(1000, 100)
            optimizer = make(model.parameters())
            tracker = MemTracker()
            tracker.track_external(model, optimizer)
            with tracker:
                model(torch.ones(3, 1000)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        snapshot = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
        return next(value for kind, value in snapshot.items() if str(kind).endswith("OPT"))

    found = bytes_of_state(lambda params: FusedRAdam(params, **OPTIONS[options]))
    expected = 2.03 * 100_000 + 8 * 100 if options == "int8" else 8 * 100_100
    assert expected <= found <= 1.02 * expected


def test_rectification_state_and_hooks_and_stepping_in_backward() -> None:
    with FakeTensorMode():
        model = nn.Linear(10, 6)
        optimizer = FusedRAdam(model.parameters())
        seen = []
        optimizer.register_step_post_hook(lambda *_: seen.append(1))
        step_in_backward(optimizer)
        for _ in range(2):
            model(torch.ones(3, 10)).sum().backward()
            assert model.weight.grad is None
            optimizer.step()
        assert seen == [1, 1]
        assert len(optimizer.state) == 2


def test_errors_are_those_of_real_tensors() -> None:
    with FakeTensorMode():
        integers = torch.ones(3, dtype=torch.int32)
        integers.grad = torch.ones(3, dtype=torch.int32)
        with pytest.raises(TypeError, match=r"torch\.int32: must be one of"):
            FusedRAdam([integers])


def test_a_trace_on_fake_tensors_has_the_step_in_it() -> None:
    """Nothing may be left out of the graph: what is fake has no values, but its operators are seen."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seen(TorchDispatchMode):
        names: list[str]

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.append(str(function))
            return function(*args, **(kwargs or {}))

    for options in ({}, {"max_grad_norm": 1.0}):
        seen = Seen()
        seen.names = []
        with FakeTensorMode(), seen:
            p = torch.ones(3)
            optimizer = FusedRAdam([p], **options)
            p.grad = torch.ones(3)
            optimizer.step()
        assert "radam_fused.step_native.default" in seen.names
        assert ("radam_fused.grad_norm_native.default" in seen.names) == bool(options)


def test_parameters_of_the_meta_device_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"meta device, which have no values.*after model.to_empty"):
        FusedRAdam([nn.Parameter(torch.ones(3, device="meta"))])


def test_a_backend_that_does_not_serve_a_device_names_those_that_do() -> None:
    with pytest.raises(ValueError, match=r"parameters on meta: must be one of \('auto', 'reference'\)"):
        FusedRAdam([nn.Parameter(torch.ones(3, device="meta"))], backend="cpu")
    with pytest.warns(UserWarning, match="no backend has kernels for xpu"):
        assert backend_for("xpu", "auto") == "reference"


@pytest.mark.parametrize("options", ["plain", "int8", "clipped", "capturable", "reference"])
def test_parameters_of_the_meta_device(options: str) -> None:
    with torch.device("meta"):
        model = nn.Linear(100, 60)
    optimizer = FusedRAdam(model.parameters(), **{"backend": "reference", **OPTIONS[options]})
    for _ in range(2):
        model(torch.ones(3, 100, device="meta")).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    states = [v for e in optimizer.state.values() for k, v in e.items() if k != "step"]
    assert {v.device.type for v in states} == {"meta"}
    assert options in ("clipped", "capturable") or optimizer.state[model.weight]["step"] == 2
