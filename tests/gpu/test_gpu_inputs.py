"""Input that is wrong on a GPU, parameters of several devices, and state that moves between them."""

from __future__ import annotations

import copy

import pytest
import torch

from radam_fused import FusedRAdam, available_backends
from tests.gpu import on_gpu

SHAPES = [(1000,), (33, 17), ()]


def snapshot(params: list[torch.Tensor]) -> list[torch.Tensor]:
    return [p.detach().clone() for p in params]


def refused(error: type[Exception], match: str, params: list[torch.Tensor], opt: FusedRAdam) -> None:
    """The step raises, and no parameter has changed."""
    before = snapshot(params)
    with pytest.raises(error, match=match):
        opt.step()
    torch.cuda.synchronize()
    assert on_gpu.same(params, before)


def test_sparse_gradients_are_refused(backend: str) -> None:
    params, opt = on_gpu.model(SHAPES, backend)
    params[0].grad = torch.zeros(1000, device="cuda").to_sparse()
    refused(RuntimeError, "sparse", params, opt)


def test_a_gradient_of_another_dtype_is_refused(backend: str) -> None:
    params, opt = on_gpu.model(SHAPES, backend)
    params[1].grad = None
    params[1].grad_dtype = torch.float64
    params[1].grad = torch.ones(33, 17, dtype=torch.float64, device="cuda")
    refused(TypeError, "float64", params, opt)


def test_cpu_backend_refuses_gpu_parameters() -> None:
    with pytest.raises(ValueError, match=r"does not serve parameters on cuda"):
        on_gpu.model(SHAPES, "cpu")


def test_gpu_backend_refuses_cpu_parameters(backend: str) -> None:
    with pytest.raises(ValueError, match=r"does not serve parameters on cpu"):
        on_gpu.model(SHAPES, backend, device="cpu")


@pytest.mark.parametrize("flatten", [False, True], ids=["tensors", "flatten"])
def test_cpu_and_gpu_parameters_in_one_optimizer(flatten: bool) -> None:
    """Each device's parameters go to its own backend, in one step."""
    if available_backends()["cuda"] is not None and available_backends()["triton"] is not None:
        pytest.fail("no backend for the GPU")
    here, _ = on_gpu.model(SHAPES, "auto", device="cpu")
    there, _ = on_gpu.model(SHAPES, "auto", device="cuda")
    expected, reference = on_gpu.model(SHAPES, "reference", device="cpu")
    opt = FusedRAdam([{"params": [p for pair in zip(here, there, strict=True) for p in pair]}], 0.01, flatten=flatten)
    for _ in range(9):
        opt.step()
        reference.step()
    assert on_gpu.same(here, expected)
    assert on_gpu.same(there, expected)


def test_training_goes_on_from_a_checkpoint_of_the_cpu(backend: str) -> None:
    here, opt = on_gpu.model(SHAPES, "reference", device="cpu")
    for _ in range(6):
        opt.step()
    there, resumed = on_gpu.model(SHAPES, backend)
    with torch.no_grad():
        for p, q in zip(there, here, strict=True):
            p.copy_(q)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    for _ in range(6):
        opt.step()
        resumed.step()
    assert on_gpu.same(there, here)
    assert all(resumed.state[p]["exp_avg"].is_cuda for p in there)


def test_auto_prefers_cuda() -> None:
    """Whichever of the backends of a GPU runs here, in the order that the documentation gives."""
    from radam_fused.backends import backend_for

    available = available_backends()
    expected = next(name for name in ("cuda", "triton") if available[name] is None)
    assert backend_for("cuda", "auto") == expected
