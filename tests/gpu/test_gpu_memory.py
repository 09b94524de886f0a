"""A step allocates nothing of a parameter's size, and finds its elements beyond 2^31."""

from __future__ import annotations

import pytest
import torch

from radam_fused import FusedRAdam
from tests.gpu import on_gpu

GIB = 2**30
PERIOD = 1_000_003
"""Elements after which large tensors repeat: no multiple of a vector, a tile or a grid."""


def peak_of_a_step(opt: torch.optim.Optimizer) -> int:
    """Bytes beyond what is allocated anyway."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["allocated_bytes.all.current"]
    opt.step()
    torch.cuda.synchronize()
    return torch.cuda.memory_stats()["allocated_bytes.all.peak"] - before


@pytest.mark.parametrize("flatten", [False, True], ids=["tensors", "flatten"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_nothing_large_is_allocated(dtype: torch.dtype, flatten: bool, backend: str) -> None:
    params, opt = on_gpu.model([(4096, 4096), (1000,)], backend, dtype=dtype, flatten=flatten)
    for _ in range(7):
        opt.step()
    assert peak_of_a_step(opt) < params[0].numel() * dtype.itemsize // 20


def test_strided_gradients_are_not_copied(backend: str) -> None:
    params, opt = on_gpu.model([(2048, 2048)], backend)
    params[0].grad = torch.ones(1, 1, device="cuda").expand(2048, 2048)
    for _ in range(7):
        opt.step()
    assert peak_of_a_step(opt) < params[0].numel() * 4 // 20


def test_an_allocation_is_noticed() -> None:
    """The negative control: the plain implementation's temporaries."""
    params, opt = on_gpu.model([(4096, 4096)], "reference")
    opt.step()
    assert peak_of_a_step(opt) >= params[0].numel() * 4


def periodic(repeats: int, seed: int) -> torch.Tensor:
    """bf16 values that repeat after `PERIOD`, on the GPU."""
    one = torch.randn(PERIOD, generator=torch.Generator("cuda").manual_seed(seed), device="cuda").bfloat16()
    return one.repeat(repeats)


def assert_periodic(tensor: torch.Tensor, expected: torch.Tensor) -> None:
    """Every period of `tensor` has the bits of `expected`."""
    for k, part in enumerate(tensor.detach().view(-1, PERIOD).split(64)):
        same = torch.equal(part.view(torch.int16), expected.detach().view(torch.int16).expand_as(part))
        assert same, f"an element of periods {64 * k} to {64 * k + len(part) - 1} differs"


def one_period(seeds: tuple[int, int], steps: int) -> torch.Tensor:
    """What one period becomes, by `reference`."""
    p = torch.nn.Parameter(periodic(1, seeds[0]))
    opt = FusedRAdam([p], lr=0.01, backend="reference")
    for _ in range(steps):
        p.grad = periodic(1, seeds[1])
        opt.step()
    return p.detach()


def needs(gib: int) -> None:
    free = torch.cuda.mem_get_info()[0] / GIB
    if free < gib:
        pytest.skip(f"needs {gib} GiB of GPU memory, {free:.0f} are free")


def test_more_than_2_31_elements_in_a_tensor(backend: str) -> None:
    needs(40)
    repeats = 2**31 // PERIOD + 3
    p = torch.nn.Parameter(periodic(repeats, 0))
    assert p.numel() > 2**31
    p.grad = periodic(repeats, 1)
    opt = FusedRAdam([p], lr=0.01, backend=backend)
    for _ in range(7):
        opt.step()
    expected = one_period((0, 1), 7)
    assert not torch.equal(expected, periodic(1, 0))  # it has moved
    assert_periodic(p, expected)
    p.detach().view(torch.int16)[-1] += 1  # the negative control: the very last element
    with pytest.raises(AssertionError, match="differs"):
        assert_periodic(p, expected)


@pytest.mark.parametrize("flatten", [False, True], ids=["tensors", "flatten"])
def test_a_bucket_beyond_2_31_elements(flatten: bool, backend: str) -> None:
    needs(60)
    repeats = 2**31 // PERIOD // 2
    params = [torch.nn.Parameter(periodic(repeats, seed)) for seed in range(3)]
    for seed, p in enumerate(params):
        p.grad = periodic(repeats, seed + 10)
    opt = FusedRAdam(params, lr=0.01, backend=backend, flatten=flatten)
    for _ in range(7):
        opt.step()
    for seed, p in enumerate(params):
        assert_periodic(p, one_period((seed, seed + 10), 7))
