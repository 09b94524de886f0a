"""Low-precision state: backends, flatten, offload, compiled steps and steps during backward give the same bits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from radam_fused import FusedRAdam, step_in_backward
from radam_fused.numerics.quantization import to_parameter
from tests.support.helpers import same_bits
from tests.support.low_precision import KEPT, OPTIONS, STATES, equal, parameters, train, values

BACKENDS = ("cpu", "reference")


@pytest.mark.parametrize("options", OPTIONS)
def test_backends_and_flatten_agree(options: dict) -> None:
    results = []
    for more in ({"backend": "cpu"}, {"backend": "reference"}, {"backend": "cpu", "flatten": True}, {"seed": 3}):
        params = parameters()
        opt = FusedRAdam(params, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True, **options, **more)
        train(opt, params, 0, 8)
        results.append(values(opt, params))
    assert equal(results[0], results[1])
    assert equal(results[0], results[2])
    random = "rounding" in options or options["state_dtype"] != torch.float32
    assert equal(results[0], results[3]) == (not random)  # the negative control: another seed


@pytest.mark.parametrize("options", OPTIONS[::3])
def test_offload_agrees(options: dict) -> None:
    if options["state_dtype"] == torch.int8:
        options = {**options, "state_dtype": torch.bfloat16}
    results = []
    for offload in (False, True):
        params = parameters()
        opt = FusedRAdam(params, lr=0.01, offload=offload, **options)
        train(opt, params, 0, 8)
        results.append(values(opt, params))
    assert equal(*results)


REFUSED = {
    "float64": (torch.float64, {"state_dtype": torch.bfloat16}, "state_dtype = .*bfloat16: must be .* float64"),
    "complex128": (torch.complex128, {"state_dtype": torch.int8}, "state_dtype = torch.int8: must be"),
    "split_fp16": (torch.float16, {"master_weights": "split"}, "master_weights = 'split': must be .* torch.float16"),
}


@pytest.mark.parametrize(("dtype", "options", "message"), REFUSED.values(), ids=list(REFUSED))
def test_parameters_that_a_form_cannot_serve(dtype: torch.dtype, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FusedRAdam([nn.Parameter(torch.zeros(3, dtype=dtype))], **options)


@pytest.mark.parametrize("state", STATES.values(), ids=list(STATES))
def test_split_is_the_run_with_a_float32_copy(state: torch.dtype) -> None:
    """Bit for bit, at 2 bytes a parameter less; and both are the float32 run with rounded gradients."""
    runs = {}
    for master in ("fp32", "split", "kahan"):
        params = parameters()
        opt = FusedRAdam(params, lr=0.01, weight_decay=0.1, master_weights=master, state_dtype=state)
        train(opt, params, 0, 20)
        runs[master] = [p.detach().clone() for p in params]
    assert equal(runs["fp32"], runs["split"])
    assert not equal(runs["fp32"], runs["kahan"])
    whole = [nn.Parameter(p.detach().float()) for p in parameters()]
    opt = FusedRAdam(whole, lr=0.01, weight_decay=0.1, state_dtype=state)
    for t in range(20):
        generator = torch.Generator().manual_seed(t)
        for p in whole:
            g = torch.randn(p.shape, generator=generator) * 10.0 ** (t % 3 - 2)
            p.grad = g.bfloat16().float()
        opt.step()
    for p, w in zip(runs["split"], whole, strict=True):
        assert same_bits(p, to_parameter(w.detach(), torch.bfloat16))


@pytest.mark.parametrize("kept", ["fp32", "split", "kahan", "stochastic", "alone"])
def test_a_tiny_decay_decays(kept: str) -> None:
    """lr * weight_decay = 1e-5, far below what one step of a bfloat16 can be: lost only without any of these."""
    p = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    opt = FusedRAdam([p], lr=1e-4, weight_decay=0.1, decoupled_weight_decay=True, **KEPT[kept])
    for _ in range(2000):
        p.grad = torch.zeros_like(p)
        opt.step()
    expected = (1 - 1e-5) ** 2000
    mean = float(p.detach().double().mean())
    assert (abs(mean - expected) < 2e-3) == (kept != "alone")


@pytest.mark.parametrize("state", STATES.values(), ids=list(STATES))
def test_a_zero_gradient_does_not_drift(state: torch.dtype) -> None:
    """Never a gradient: nothing moves. None any more: the first moment fades, and the parameter stops moving."""
    p = nn.Parameter(torch.zeros(8192))
    opt = FusedRAdam([p], lr=1e-3, state_dtype=state)
    for t in range(400):
        p.grad = torch.zeros_like(p)
        p.grad[4096:] = torch.randn(4096, generator=torch.Generator().manual_seed(t))
        if t < 20:
            p.grad[:2048] = torch.randn(2048, generator=torch.Generator().manual_seed(1000 + t))
        if t == 250:
            before = p.detach().clone()
        opt.step()
    assert not p.detach()[2048:4096].any()
    assert (p.detach()[:2048] - before[:2048]).abs().max() < 1e-6
    assert not torch.equal(p.detach()[4096:], before[4096:])


@pytest.mark.parametrize("kept", ["split", "kahan", "fp32"])
def test_weights_loaded_after_the_optimizer_was_made(kept: str) -> None:
    params = parameters()
    opt = FusedRAdam(params, lr=1e-3, **KEPT[kept])
    train(opt, params, 0, 3)
    for p in params:
        p.data.copy_(torch.full_like(p, 2.0))
    train(opt, params, 3, 4)
    for p in params:
        assert ((p.detach().float() - 2.0).abs() < 0.05).all()


def test_a_model_that_changes_its_dtype_is_an_error() -> None:
    model = nn.Linear(64, 64, dtype=torch.bfloat16)
    opt = FusedRAdam(model.parameters(), master_weights="split")
    model(torch.ones(1, 64, dtype=torch.bfloat16)).sum().backward()
    opt.step()
    model.float()
    model.zero_grad()
    model(torch.ones(1, 64)).sum().backward()
    with pytest.raises(TypeError, match=r"is now torch\.float32: its master weights were made for torch\.bfloat16"):
        opt.step()


@pytest.mark.parametrize("options", OPTIONS[::3])
def test_compiled_steps_agree(options: dict) -> None:
    results = []
    for compiled in (False, True):
        params = [nn.Parameter(p.detach().contiguous()) for p in parameters()[:4]]
        opt = FusedRAdam(params, lr=torch.tensor(0.01), capturable=True, **options)
        step = torch.compile(opt.step, fullgraph=True, backend="eager") if compiled else opt.step
        for t in range(8):
            generator = torch.Generator().manual_seed(t)
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
            step()
        results.append(values(opt, params))
    assert equal(*results)


@pytest.mark.parametrize("options", OPTIONS[::3])
def test_stepping_in_backward_rounds_alike(options: dict) -> None:
    results = []
    for in_backward in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(70, 80), nn.Tanh(), nn.Linear(80, 90)).bfloat16()
        opt = FusedRAdam(model.parameters(), lr=0.01, **options)
        if in_backward:
            step_in_backward(opt)
        for t in range(8):
            x = torch.randn(4, 70, generator=torch.Generator().manual_seed(t)).bfloat16()
            model(x).float().square().sum().backward()
            opt.step()
            opt.zero_grad()
        results.append(values(opt, list(model.parameters())))
    assert equal(*results)
