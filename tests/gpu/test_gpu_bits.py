"""The same bits on the GPU: `cuda`, `triton` and `reference` there, and `cpu` and `reference` on the CPU."""

from __future__ import annotations

import pytest
import torch

from radam_fused import FusedRAdam
from tests.gpu import on_gpu
from tests.kernels import test_bits
from tests.kernels.test_bits import HYPERPARAMETERS, PAIRS, SHORT, SPECIAL, assert_same
from tests.support.helpers import LAYOUTS, one_ulp_up, same_bits

PAIR = pytest.mark.parametrize(("dtype", "grad_dtype"), PAIRS, ids=[f"{SHORT[p]}-grad_{SHORT[g]}" for p, g in PAIRS])
DTYPE = pytest.mark.parametrize("dtype", SHORT, ids=list(SHORT.values()))


@pytest.fixture(scope="module")
def known() -> dict:
    return {}


def expected(known: dict, dtype: torch.dtype, grad_dtype: torch.dtype) -> tuple[list, list]:
    """What ``reference`` gives on the CPU, computed once a pair of dtypes."""
    if (dtype, grad_dtype) not in known:
        known[dtype, grad_dtype] = test_bits.train("reference", dtype, grad_dtype)
    return known[dtype, grad_dtype]


@PAIR
def test_gpu_equals_reference_on_the_cpu(
    dtype: torch.dtype, grad_dtype: torch.dtype, backend: str, known: dict
) -> None:
    assert_same(on_gpu.train(backend, dtype, grad_dtype), expected(known, dtype, grad_dtype))


@PAIR
def test_reference_gives_the_same_on_the_gpu(dtype: torch.dtype, grad_dtype: torch.dtype, known: dict) -> None:
    assert_same(on_gpu.train("reference", dtype, grad_dtype), expected(known, dtype, grad_dtype))


@PAIR
def test_cpu_equals_reference_on_this_machine(dtype: torch.dtype, grad_dtype: torch.dtype, known: dict) -> None:
    assert_same(test_bits.train("cpu", dtype, grad_dtype), expected(known, dtype, grad_dtype))


@DTYPE
def test_flatten(dtype: torch.dtype, backend: str, known: dict) -> None:
    assert_same(on_gpu.train(backend, dtype, dtype, flatten=True), expected(known, dtype, dtype))


@DTYPE
def test_a_second_run_repeats_the_first(dtype: torch.dtype, backend: str) -> None:
    assert_same(on_gpu.train(backend, dtype, dtype, steps=9), on_gpu.train(backend, dtype, dtype, steps=9))


@DTYPE
def test_one_ulp_is_noticed(dtype: torch.dtype, backend: str) -> None:
    """The negative control: one element of one tensor, one unit in the last place off."""
    params, moments = on_gpu.train(backend, dtype, dtype, steps=3)
    changed = [p.clone() for p in params]
    one_ulp_up(changed[list(LAYOUTS).index("size_50021")], 33_333)
    with pytest.raises(AssertionError, match="parameter size_50021"):
        assert_same((changed, moments), (params, moments))
    changed = [m.clone() for m in moments]
    one_ulp_up(changed[2 * list(LAYOUTS).index("size_257")], 256)
    with pytest.raises(AssertionError, match="exp_avg of size_257"):
        assert_same((params, changed), (params, moments))


@DTYPE
@pytest.mark.parametrize("options", HYPERPARAMETERS.values(), ids=list(HYPERPARAMETERS))
def test_special_values(options: dict, dtype: torch.dtype, backend: str) -> None:
    """NaN, infinities, subnormals and signed zeros in every combination of parameter and gradient."""
    values = torch.tensor(SPECIAL, dtype=dtype)
    start = values.repeat_interleave(len(SPECIAL))
    grads = [values.repeat(len(SPECIAL)), values.flip(0).repeat(len(SPECIAL))]
    results = []
    for name, device in (("reference", "cpu"), (backend, "cuda")):
        p = torch.nn.Parameter(start.to(device, copy=True))
        opt = FusedRAdam([p], backend=name, **options)
        for step in range(9):
            p.grad = grads[step % 2].to(device)
            opt.step()
        results.append([p.detach().cpu(), opt.state[p]["exp_avg"].cpu(), opt.state[p]["exp_avg_sq"].cpu()])
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_rounding_to_16_bits(dtype: torch.dtype, backend: str) -> None:
    """Stores round to nearest even, for every float32 near a boundary: p = 0 and lr = 1 write -m."""
    patterns = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype).float()
    bits = patterns[patterns.isfinite()].view(torch.int32)
    half = 1 << (12 if dtype == torch.float16 else 15)
    near = torch.cat([(bits + offset).view(torch.float32) for offset in (0, 1, half - 1, half, half + 1)])
    p = torch.nn.Parameter(torch.zeros(near.numel(), dtype=dtype, device="cuda"))
    p.grad_dtype = torch.float32
    opt = FusedRAdam([p], lr=1.0, betas=(0.0, 0.9), backend=backend)
    p.grad = near.cuda()
    opt.step()
    assert same_bits(p.detach().cpu(), (0.0 - near).to(dtype))
