"""``offload=True``: arguments and tensors that do not fit are errors, found before the first chunk is written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from radam_fused import FusedRAdam
from radam_fused.backends import registry
from tests.support.helpers import gradients
from tests.support.offloaded import SHAPES, model, results, same, train


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"offload": 1}, TypeError, "offload = 1: must be True or False"),
        (
            {"offload": True, "backend": "reference"},
            ValueError,
            "backend = 'reference' .*: must be 'auto' or 'cpu' with",
        ),
        ({"offload": True, "flatten": True}, ValueError, "flatten = True: must be False with offload=True, which"),
        ({"offload": True, "capturable": True}, ValueError, "capturable = True: must be False with offload=True, as"),
        (
            {"offload": True, "differentiable": True},
            ValueError,
            r"offload = True: must be one of \(False,\) with differ",
        ),
    ],
    ids=["kind", "backend", "flatten", "capturable", "differentiable"],
)
def test_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FusedRAdam([nn.Parameter(torch.ones(3))], **options)


def test_the_environments_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RADAM_FUSED_BACKEND", "reference")
    with pytest.raises(ValueError, match=r"backend = 'reference' .*RADAM_FUSED_BACKEND.*: must be 'auto' or 'cpu'"):
        FusedRAdam([nn.Parameter(torch.ones(3))], offload=True)


def test_no_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error, when the optimizer is made and where one is loaded: no slow backend takes the place of the host's."""
    _, made_elsewhere = model(offload=True)
    monkeypatch.setitem(registry._UNAVAILABLE, "cpu", lambda: "the C++ extension is not there")
    message = "offload = True: .* 'cpu', which cannot run here: the C.. extension is not there"
    with pytest.raises(RuntimeError, match=message):
        FusedRAdam([nn.Parameter(torch.ones(3))], offload=True)
    loaded = copy.deepcopy(made_elsewhere)
    for p in loaded.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match=message):
        loaded.step()
    FusedRAdam([nn.Parameter(torch.ones(3))], offload=False, backend="reference")  # the negative control


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"params": [nn.Parameter(torch.ones(3, device="meta"))]}, r"\['params'\]\[0\] is on meta: must be on one of"),
        (
            {"params": [nn.Parameter(torch.ones(3))], "capturable": True},
            r"param_groups\[2\]\['capturable'\] = True: must",
        ),
    ],
    ids=["device", "capturable"],
)
def test_groups(group: dict[str, Any], message: str) -> None:
    _, opt = model(offload=True)
    with pytest.raises(ValueError, match=message):
        opt.add_param_group(group)
    assert len(opt.param_groups) == 2


def wrong_shape(p: nn.Parameter) -> None:
    p.grad.data = torch.ones(5)


def wrong_dtype(p: nn.Parameter) -> None:
    p.data = p.data.bfloat16()


def sparse(p: nn.Parameter) -> None:
    p.grad = p.grad.to_sparse()


def reshaped(p: nn.Parameter) -> None:
    p.grad = None
    p.data = p.data.reshape(30, 70)
    p.grad = torch.ones(30, 70)


@pytest.mark.parametrize("spoil", [wrong_shape, wrong_dtype, sparse, reshaped])
def test_all_or_nothing(spoil: Callable, small_slots: None) -> None:
    """A tensor that does not fit is found before the first chunk is written."""
    params, opt = model(offload=True)
    train(params, opt, range(2))
    train_grads = gradients([p.shape for p in params], torch.float32, 5)
    for p, grad in zip(params, train_grads, strict=True):
        p.grad = grad
    spoil(params[3])
    before = copy.deepcopy(results(params, opt))
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        opt.step()
    assert same(results(params, opt), before)
    assert [int(s["step"]) for s in opt.state.values()] == [2] * len(SHAPES)


def test_strides_that_change_are_followed(small_slots: None) -> None:
    trained = []
    for offloaded in (True, False):
        params, opt = model([(2, 30, 5, 5), (40, 30)], offload=offloaded)
        train(params, opt, range(4))
        params[0].data = params[0].data.to(memory_format=torch.channels_last)
        params[1].data = params[1].data.t().contiguous().t()
        trained.append(train(params, opt, range(4, 8)))
    assert same(*trained)
