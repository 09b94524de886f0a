"""What the optimizer promises of state in fewer bits: its size, its checkpoints, its steps."""

from __future__ import annotations

import copy
import io
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam, step_in_backward
from radam_fused.backends.reference.low_precision import to_parameter
from tests.support.helpers import same_bits
from tests.support.paths import ROOT

BACKENDS = ("cpu", "reference")
SHAPES = ((128, 65), (4096,), (40, 30), (7,), (64, 16, 3, 3), (0,), ())
STATES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
KEPT: dict[str, dict[str, Any]] = {
    "alone": {},
    "stochastic": {"rounding": "stochastic"},
    "fp32": {"master_weights": "fp32"},
    "split": {"master_weights": "split"},
    "kahan": {"master_weights": "kahan"},
}


def parameters(dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    params = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    params[4].data = params[4].data.to(memory_format=torch.channels_last)
    params[0].data = params[0].data.t().contiguous().t()
    return params


def train(opt: FusedRAdam, params: list[nn.Parameter], begin: int, end: int) -> None:
    for t in range(begin, end):
        generator = torch.Generator().manual_seed(t)
        for p in params:
            p.grad = (torch.randn(p.shape, generator=generator) * 10.0 ** (t % 3 - 2)).to(p.dtype)
        opt.step()


def values(opt: FusedRAdam, params: list[nn.Parameter]) -> list[Tensor]:
    return [t.detach().clone() for p in params for t in (p, *(opt.state[p][name] for name in sorted(opt.state[p])))]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(
        same_bits(x, y) if x.is_floating_point() else torch.equal(x, y) for x, y in zip(a, b, strict=True)
    )


OPTIONS = [
    pytest.param({"state_dtype": state, **kept}, id=f"{name}-{state_name}")
    for name, kept in KEPT.items()
    for state_name, state in STATES.items()
]


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
    draws = "rounding" in options or options["state_dtype"] != torch.float32
    assert equal(results[0], results[3]) == (not draws)  # the negative control: another seed


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


@pytest.mark.parametrize("options", OPTIONS)
def test_checkpoint_is_exact(options: dict) -> None:
    """Saved, loaded and gone on with: the same bits as never interrupted."""
    params = parameters()
    opt = FusedRAdam(params, lr=0.01, seed=5, **options)
    train(opt, params, 0, 7)
    file = io.BytesIO()
    torch.save((opt.state_dict(), [p.detach() for p in params]), file)
    train(opt, params, 7, 12)

    file.seek(0)
    saved, weights = torch.load(file)
    resumed = parameters(seed=1)
    for p, weight in zip(resumed, weights, strict=True):
        p.data = weight
    again = FusedRAdam(resumed, lr=0.5, **options)
    again.load_state_dict(saved)
    assert again.param_groups[0]["seed"] == 5
    train(again, resumed, 7, 12)
    assert equal(values(opt, params), values(again, resumed))


@pytest.mark.parametrize("after", OPTIONS[::3])
@pytest.mark.parametrize("before", OPTIONS[1::4])
def test_checkpoint_of_another_form_is_converted(before: dict, after: dict) -> None:
    params = parameters()
    opt = FusedRAdam(params, lr=0.01, **before)
    train(opt, params, 0, 8)
    copies = [copy.deepcopy(p) for p in params]
    loaded = FusedRAdam(copies, lr=0.01, **after)
    loaded.load_state_dict(opt.state_dict())
    fresh = parameters()
    made = FusedRAdam(fresh, **after)
    train(made, fresh, 0, 1)
    assert [loaded.state[p].keys() for p in copies] == [made.state[p].keys() for p in fresh]
    plain = FusedRAdam([copy.deepcopy(p) for p in params], lr=0.01)
    plain.load_state_dict(loaded.state_dict())
    whole = FusedRAdam([copy.deepcopy(p) for p in params], lr=0.01)
    whole.load_state_dict(opt.state_dict())
    for p, q in zip(plain.param_groups[0]["params"], whole.param_groups[0]["params"], strict=True):
        for name, tolerance in (("exp_avg", 0.02), ("exp_avg_sq", 0.05)):
            ours, theirs = plain.state[p][name], whole.state[q][name]
            assert (ours - theirs).norm() <= tolerance * theirs.norm()
    train(loaded, copies, 8, 10)
    assert all(p.isfinite().all() for p in copies)


@pytest.mark.parametrize("options", OPTIONS[1::3])
def test_torch_optim_checkpoints_are_converted(options: dict) -> None:
    params = [nn.Parameter(p.detach().float()) for p in parameters()]
    theirs = torch.optim.RAdam(params, lr=0.01)
    for t in range(7):
        for p in params:
            p.grad = torch.full_like(p, 0.1 * (t + 1))
        theirs.step()
    ours = FusedRAdam([nn.Parameter(p.detach().bfloat16()) for p in params], lr=0.01, **options)
    ours.load_state_dict(theirs.state_dict())
    back = FusedRAdam(params, lr=0.01)
    back.load_state_dict(ours.state_dict())
    for p in params:
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(back.state[p][name], theirs.state[p][name], rtol=0.02, atol=0)


def cast_codes(saved: dict) -> None:
    saved["state"][0]["exp_avg_code"] = saved["state"][0]["exp_avg_code"].bfloat16()


def cut_scales(saved: dict) -> None:
    saved["state"][0]["exp_avg_scale"] = saved["state"][0]["exp_avg_scale"][:-1]


def cast_master(saved: dict) -> None:
    saved["state"][0]["master_low"] = saved["state"][0]["master_low"].float()


def drop_second(saved: dict) -> None:
    del saved["state"][1]["exp_avg_sq_scale"]


BROKEN = {
    "codes_cast": (cast_codes, TypeError, "'exp_avg_code' of .*0.* must be a dense torch.int8 tensor"),
    "scales_cut": (cut_scales, ValueError, r"'exp_avg_scale' of .* has shape \(32,\): must be \(33,\)"),
    "master_cast": (cast_master, TypeError, "'master_low' of .* must be a dense torch.int16 tensor"),
    "scale_missing": (drop_second, ValueError, "has no 'exp_avg'; it holds"),
}


@pytest.mark.parametrize(("spoil", "error", "message"), BROKEN.values(), ids=list(BROKEN))
def test_a_broken_checkpoint_changes_nothing(spoil: Any, error: type[Exception], message: str) -> None:
    options = {"state_dtype": torch.int8, "master_weights": "split"}
    params = parameters()
    opt = FusedRAdam(params, **options)
    train(opt, params, 0, 3)
    saved = copy.deepcopy(opt.state_dict())
    spoil(saved)
    before = values(opt, params)
    with pytest.raises(error, match=message):
        opt.load_state_dict(saved)
    assert equal(before, values(opt, params))


REFUSED = {
    "float64": (torch.float64, {"state_dtype": torch.bfloat16}, "state_dtype = .*bfloat16: must be .* float64"),
    "complex128": (torch.complex128, {"state_dtype": torch.int8}, "state_dtype = torch.int8: must be"),
    "split_fp16": (torch.float16, {"master_weights": "split"}, "master_weights = 'split': must be .* torch.float16"),
}


@pytest.mark.parametrize(("dtype", "options", "message"), REFUSED.values(), ids=list(REFUSED))
def test_parameters_that_a_form_cannot_serve(dtype: torch.dtype, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FusedRAdam([nn.Parameter(torch.zeros(3, dtype=dtype))], **options)


def state_bytes(opt: FusedRAdam) -> int:
    """What the state's tensors hold, the flat buffers behind them counted once and whole."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for entry in opt.state.values()
        for name, tensor in entry.items()
        if name != "step"
    }
    return sum(storages.values())


SIZES = {
    "fp32": ({}, 8.0),
    "bf16": ({"state_dtype": torch.bfloat16}, 4.0),
    "fp16": ({"state_dtype": torch.float16}, 4.0),
    "int8": ({"state_dtype": torch.int8}, 2.03125),
    "int8_split": ({"state_dtype": torch.int8, "master_weights": "split"}, 4.03125),
    "int8_kahan": ({"state_dtype": torch.int8, "master_weights": "kahan"}, 4.03125),
    "int8_fp32": ({"state_dtype": torch.int8, "master_weights": "fp32"}, 6.03125),
}


@pytest.mark.parametrize(("options", "expected"), SIZES.values(), ids=list(SIZES))
def test_bytes_a_parameter(options: dict, expected: float) -> None:
    params = [nn.Parameter(torch.zeros(1024, 1024, dtype=torch.bfloat16))]
    opt = FusedRAdam(params, **options)
    params[0].grad = torch.ones_like(params[0])
    opt.step()
    assert state_bytes(opt) / params[0].numel() == expected


README = (ROOT / "README.md").read_text()
MEMORY = re.findall(r"^\| (float32|bfloat16) \| (?:`(.*?)`)?[^|]*\| ([\d.]+) \| ([\d.]+) \|$", README, re.MULTILINE)
"""Dtype of the parameters, options, bytes of state and of all."""


@pytest.mark.parametrize(("dtype", "options", "state", "whole"), MEMORY, ids=lambda cell: str(cell).replace(" ", ""))
def test_the_readme_s_memory(dtype: str, options: str, state: str, whole: str) -> None:
    """What the README's table says of each form is what its tensors hold."""
    p = nn.Parameter(torch.zeros(1024, 1024, dtype=getattr(torch, dtype)))
    p.grad = torch.ones_like(p)
    opt = FusedRAdam([p], **eval(f"dict({options})", {"torch": torch}))
    opt.step()
    found = state_bytes(opt) / p.numel()
    assert f"{found:.2f}" == f"{float(state):.2f}"
    assert f"{found + 2 * p.dtype.itemsize:.2f}" == f"{float(whole):.2f}"


def test_the_readme_s_memory_is_found() -> None:
    """The negative control: a table that is not read, or whose rows are all alike, would pass."""
    assert len(MEMORY) >= 7
    assert len({row[2] for row in MEMORY}) >= 5


def test_small_tensors_keep_float32_moments() -> None:
    params = [nn.Parameter(torch.zeros(4095)), nn.Parameter(torch.zeros(4096))]
    opt = FusedRAdam(params, state_dtype=torch.int8)
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    assert opt.state[params[0]]["exp_avg"].dtype == torch.float32
    assert opt.state[params[1]]["exp_avg_code"].dtype == torch.int8


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
    """Never a gradient: nothing moves. None any more: the first moment fades, and the parameter comes to rest."""
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


def test_a_model_that_changes_its_dtype_is_told() -> None:
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
def test_stepping_in_backward_draws_the_same(options: dict) -> None:
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
