"""What an optimizer reports of itself."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from radam_fused import FusedRAdam
from radam_fused.backends import registry
from radam_fused.rectification import rectification, rho


@pytest.mark.parametrize("capturable", [False, True], ids=["host", "device"])
def test_rectification_state(capturable: bool) -> None:
    p, late, exact = (torch.zeros(3) for _ in range(3))
    opt = FusedRAdam(
        [{"params": [p, late]}, {"params": [exact], "betas": (0.9, 0.99), "rectification": "exact"}],
        capturable=capturable,
    )
    assert opt.rectification_state() == []
    for t in range(1, 9):
        p.grad, exact.grad = torch.ones(3), torch.ones(3)
        late.grad = torch.ones(3) if t > 4 else None
        opt.step()
    assert opt.rectification_state() == [
        (0, 1, 8, rho(8, 0.999), rectification(8, 0.999)),
        (0, 1, 4, rho(4, 0.999), None),
        (1, 1, 8, rho(8, 0.99), rectification(8, 0.99, "exact")),
    ]


SPANS = {"radam_fused.collect", "radam_fused.scalars", "radam_fused.step"}


def clipped() -> FusedRAdam:
    p = torch.zeros(3)
    p.grad = torch.ones(3)
    return FusedRAdam([p], max_grad_norm=1.0)


def test_spans_in_a_profile() -> None:
    opt = clipped()
    with torch.profiler.profile() as profile:
        opt.step()
    assert {event.key for event in profile.key_averages()} >= SPANS


@pytest.mark.skipif(not torch.profiler.itt.is_available(), reason="this torch marks no ranges but NVTX's")
def test_spans_only_where_ranges_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By ITT, which torch marks in the way of NVTX but without a GPU."""
    seen: list[str] = []
    record = torch.autograd.profiler.record_function

    def recorded(name: str) -> torch.autograd.profiler.record_function:
        seen.append(name)
        return record(name)

    monkeypatch.setattr(torch.autograd.profiler, "record_function", recorded)
    opt = clipped()
    opt.step()
    assert not SPANS & set(seen)
    with torch.autograd.profiler.emit_itt():
        opt.step()
    assert set(seen) >= SPANS
    seen.clear()
    opt.step()
    assert not SPANS & set(seen)


def two_dtypes(**options: Any) -> FusedRAdam:
    wide = torch.float64 if options.get("flatten") else torch.complex128
    params = [torch.nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in (torch.float32, wide)]
    for p in params:
        p.grad = torch.ones_like(p)
    frozen = torch.nn.Parameter(torch.ones(3, dtype=torch.float16), requires_grad=False)
    return FusedRAdam([*params, frozen], **options)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"backend": "cpu"}, "cpu"),
        ({"backend": "reference"}, "reference"),
        ({"backend": "cpu", "flatten": True}, "cpu"),
        ({"backend": "cpu", "offload": True}, "cpu"),
    ],
    ids=str,
)
def test_backend_of_each_device_and_dtype(options: dict[str, Any], name: str) -> None:
    opt = two_dtypes(**options)
    expected = {"cpu float32": name, "cpu float64": name}
    before = opt.backend, list(opt.state), opt._bucket_manager and list(opt._bucket_manager.buckets)
    assert opt.backend == expected
    assert (opt.backend, list(opt.state), opt._bucket_manager and list(opt._bucket_manager.buckets)) == before
    opt.step()
    assert opt.backend == expected


def test_backend_of_a_differentiable_step() -> None:
    assert two_dtypes(differentiable=True).backend == {"cpu float32": "reference", "cpu float64": "reference"}


def test_backend_is_that_of_the_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket keeps the operators that it was made with; what has none gets those that a step would choose now."""
    monkeypatch.delenv("RADAM_FUSED_BACKEND", raising=False)
    monkeypatch.setitem(registry._UNAVAILABLE, "cpu", lambda: None)
    first, second = two_dtypes().param_groups[0]["params"][:2]
    opt = FusedRAdam([first])
    opt.step()
    opt.add_param_group({"params": [second]})
    monkeypatch.setitem(registry._UNAVAILABLE, "cpu", lambda: "the extension is gone")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the step warns of `reference`; a look at it does not
        assert opt.backend == {"cpu float32": "cpu", "cpu float64": "reference"}


def test_backend_is_read_only() -> None:
    opt = two_dtypes()
    with pytest.raises(AttributeError):
        opt.backend = {}  # type: ignore[misc]
    with pytest.raises(AttributeError):
        opt.backends  # noqa: B018
    assert opt._bucket_manager is not None
    assert opt._bucket_manager.buckets == []


def test_repr() -> None:
    opt = two_dtypes(backend="cpu", state_dtype=torch.float32, master_weights="split", max_grad_norm=0.5)
    shown = repr(opt)
    opt.step()
    assert repr(opt) == shown
    lines = shown.splitlines()
    assert lines[:10] == [
        "FusedRAdam (",
        "    backend: {'cpu float32': 'cpu', 'cpu float64': 'cpu'}",
        "    flatten: False",
        "    master_weights: split",
        "    max_grad_norm: 0.5",
        "    offload: False",
        "    rounding: nearest",
        "    state_dtype: torch.float32",
        "    zero_grads: False",
        "Parameter Group 0",
    ]
    # The groups are shown as torch shows them.
    assert "    rectification: first_order" in lines
    assert lines[9:] == torch.optim.Optimizer.__repr__(opt).splitlines()[1:]


def test_repr_names_the_backend_where_nothing_may_be_stepped() -> None:
    frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    opt = FusedRAdam([frozen], backend="reference")
    assert opt.backend == {}
    assert "    backend: reference" in repr(opt).splitlines()
