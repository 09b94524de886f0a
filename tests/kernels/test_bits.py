"""The promise: every backend gives the same bits, for every dtype, layout, thread count and instruction set."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from radam_fused import FusedRAdam
from tests.support.helpers import LAYOUTS, filled, gradients, one_ulp_up, same_bits
from tests.support.paths import ROOT

STEPS = 30
INTERPRETED = 16
"""Steps under Triton's interpreter, at a fifth of a second each; more than half of them are rectified."""
FLOAT = (torch.float32, torch.float16, torch.bfloat16)
PAIRS = [(torch.float64, torch.float64), *((p, g) for p in FLOAT for g in FLOAT)]
SHORT = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}

HYPERPARAMETERS = {
    "plain": {},
    "coupled": {"weight_decay": 0.1, "maximize": True},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True, "rectification": "exact", "rho_threshold": 4.0},
    "hold": {"degenerated_to_sgd": False, "betas": (0.0, 0.99), "eps": 0.0},
    "adam": {"rectification": "none", "eps": 1e-3},
    "short_average": {
        "betas": (0.8, 0.4),
        "rectification": "none",
        "weight_decay": 1e-5,
        "decoupled_weight_decay": True,
    },
}
"""One group each in the same optimizer, so that one launch has scalars of every kind."""


def expanded(grad: Tensor) -> Tensor:
    """The gradient of a sum: one value, seen through strides of 0."""
    return grad.reshape(-1)[:1].reshape([1] * grad.dim()).expand(grad.shape) if grad.numel() else grad


def train(
    backend: str, dtype: torch.dtype, grad_dtype: torch.dtype, *, steps: int = STEPS, **options: object
) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and moments after training every layout with every set of hyperparameters.

    Each layout belongs to one group in turn; the gradient's layout alternates between its parameter's, row-major and
    expanded.
    """
    names = list(LAYOUTS)
    params = [torch.nn.Parameter(filled(name, dtype, seed)) for seed, name in enumerate(names)]
    groups = [
        {"params": params[k :: len(HYPERPARAMETERS)], "lr": 0.01 * (k + 1), **values}
        for k, values in enumerate(HYPERPARAMETERS.values())
    ]
    opt = FusedRAdam(groups, backend=backend, **options)
    for step in range(steps):
        for k, (p, g) in enumerate(zip(params, gradients([p.shape for p in params], grad_dtype, step), strict=True)):
            if p.dtype != grad_dtype:
                p.grad_dtype = grad_dtype
            if k % 7 == 3 and step in (2, 3):
                p.grad = None  # its own step count from here on
            elif step % 3 == 2:
                p.grad = expanded(g)
            else:
                p.grad = torch.empty_like(p, dtype=grad_dtype).copy_(g) if step % 3 == 0 else g
        opt.step()
    moments = [opt.state[p][key] for p in params for key in ("exp_avg", "exp_avg_sq")]
    return [p.detach() for p in params], moments


@pytest.fixture(scope="module")
def expected() -> dict[tuple, tuple[list[Tensor], list[Tensor]]]:
    """The results of ``reference``, computed once per pair of dtypes."""
    return {}


def reference(
    expected: dict, dtype: torch.dtype, grad_dtype: torch.dtype, steps: int = STEPS
) -> tuple[list[Tensor], list[Tensor]]:
    key = dtype, grad_dtype, steps
    if key not in expected:
        expected[key] = train("reference", dtype, grad_dtype, steps=steps)
    return expected[key]


def assert_same(ours: tuple[list[Tensor], list[Tensor]], theirs: tuple[list[Tensor], list[Tensor]]) -> None:
    names = list(LAYOUTS)
    for k, (a, b) in enumerate(zip(ours[0], theirs[0], strict=True)):
        assert same_bits(a, b), f"parameter {names[k]}"
    for k, (a, b) in enumerate(zip(ours[1], theirs[1], strict=True)):
        assert same_bits(a, b), f"{('exp_avg', 'exp_avg_sq')[k % 2]} of {names[k // 2]}"


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize(("dtype", "grad_dtype"), PAIRS, ids=[f"{SHORT[p]}-grad_{SHORT[g]}" for p, g in PAIRS])
def test_cpu_equals_reference(dtype: torch.dtype, grad_dtype: torch.dtype, threads: int, expected: dict) -> None:
    torch.set_num_threads(threads)
    assert_same(train("cpu", dtype, grad_dtype), reference(expected, dtype, grad_dtype))


@pytest.mark.sampled
@pytest.mark.parametrize(("dtype", "grad_dtype"), PAIRS, ids=[f"{SHORT[p]}-grad_{SHORT[g]}" for p, g in PAIRS])
def test_triton_equals_reference(dtype: torch.dtype, grad_dtype: torch.dtype, expected: dict) -> None:
    ours = train("triton", dtype, grad_dtype, steps=INTERPRETED)
    assert_same(ours, reference(expected, dtype, grad_dtype, INTERPRETED))


@pytest.mark.parametrize("dtype", SHORT, ids=list(SHORT.values()))
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_flatten_equals_reference(backend: str, dtype: torch.dtype, expected: dict) -> None:
    assert_same(train(backend, dtype, dtype, flatten=True), reference(expected, dtype, dtype))


@pytest.mark.parametrize("where", ["first", "last"])
@pytest.mark.parametrize("dtype", SHORT, ids=list(SHORT.values()))
def test_one_ulp_is_noticed(dtype: torch.dtype, where: str, expected: dict) -> None:
    """The negative control: the comparison above fails when one element of one tensor is one ulp off."""
    params, moments = reference(expected, dtype, dtype)
    changed = [p.clone() for p in params]
    largest = changed[list(LAYOUTS).index("size_50021")]
    one_ulp_up(largest, 0 if where == "first" else largest.numel() - 1)
    with pytest.raises(AssertionError, match="parameter size_50021"):
        assert_same((changed, moments), (params, moments))
    changed = [m.clone() for m in moments]
    one_ulp_up(changed[2 * list(LAYOUTS).index("size_257") + 1], 0)
    with pytest.raises(AssertionError, match="exp_avg_sq of size_257"):
        assert_same((params, changed), (params, moments))


@pytest.mark.parametrize("capability", ["baseline", pytest.param("avx2", marks=pytest.mark.long)])
def test_instruction_sets_agree(capability: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrower instruction set, chosen when the extension loads, gives the same bits."""
    script = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); import radam_fused._C as C; "
        "from tests.kernels import test_bits; "
        "out = {str(p): test_bits.train('cpu', p, p, steps=12) for p in test_bits.SHORT}; "
        "torch.save((C.cpu_capability(), out), sys.argv[2])"
    )
    monkeypatch.setenv("RADAM_FUSED_CPU_ISA", capability)
    path = tmp_path / "out.pt"
    subprocess.run([sys.executable, "-c", script, str(ROOT), str(path)], check=True)
    used, out = torch.load(path)
    assert used == capability
    for dtype in SHORT:
        assert_same(out[str(dtype)], train("cpu", dtype, dtype, steps=12))


SPECIAL = [0.0, -0.0, 1.0, -1.0, float("inf"), -float("inf"), float("nan"), 1e-45, -1e-45, 1e-38, 3e38, -3e38, 65504.0]


@pytest.mark.parametrize("dtype", SHORT, ids=list(SHORT.values()))
@pytest.mark.parametrize("options", HYPERPARAMETERS.values(), ids=list(HYPERPARAMETERS))
def test_special_values(options: dict, dtype: torch.dtype) -> None:
    """NaN, infinities, subnormals and signed zeros in every combination of parameter and gradient."""
    values = torch.tensor(SPECIAL, dtype=dtype)
    start = values.repeat_interleave(len(SPECIAL))
    grads = [values.repeat(len(SPECIAL)), values.flip(0).repeat(len(SPECIAL))]
    results = []
    for backend in ("reference", "cpu", "triton"):
        p = torch.nn.Parameter(start.clone())
        opt = FusedRAdam([p], backend=backend, **options)
        for step in range(9):
            p.grad = grads[step % 2]
            opt.step()
        results.append(([p.detach()], [opt.state[p]["exp_avg"], opt.state[p]["exp_avg_sq"]]))
    for result in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(result[0] + result[1], results[0][0] + results[0][1], strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_every_16_bit_value_survives(dtype: torch.dtype, backend: str) -> None:
    """With lr = 0 a step writes back what it has read, for all 65,536 patterns (every NaN being one)."""
    patterns = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype)
    p = torch.nn.Parameter(patterns.clone())
    opt = FusedRAdam([p], lr=0.0, backend=backend)
    p.grad = torch.ones_like(p)
    opt.step()
    assert same_bits(p, patterns)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_rounding_to_16_bits(dtype: torch.dtype, backend: str) -> None:
    """Stores round to nearest even, as torch does, here every float32 near a boundary: p = 0 and lr = 1 write -m."""
    patterns = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype).float()
    bits = patterns[patterns.isfinite()].view(torch.int32)
    half = 1 << (12 if dtype == torch.float16 else 15)
    near = torch.cat([(bits + offset).view(torch.float32) for offset in (0, 1, half - 1, half, half + 1)])
    assert near.numel() > 300_000
    p = torch.nn.Parameter(torch.zeros(near.numel(), dtype=dtype))
    p.grad_dtype = torch.float32
    opt = FusedRAdam([p], lr=1.0, betas=(0.0, 0.9), backend=backend)
    p.grad = near
    opt.step()
    assert same_bits(p, (0.0 - near).to(dtype))
    truncated = (near.view(torch.int32) & ~(2 * half - 1)).view(torch.float32)  # the negative control
    assert not same_bits(p, (0.0 - truncated).to(dtype))
