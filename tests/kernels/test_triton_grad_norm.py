"""The Triton grad_norm kernel, interpreted, against ``reference``, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.helpers import LAYOUTS, filled, noise, same_bits
from tests.support.triton_operators import REFERENCE, TRITON

DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=["fp32", "fp64", "fp16", "bf16"]
)


def odd_gradients(dtype: torch.dtype) -> list[Tensor]:
    """Every layout of `LAYOUTS`, tile boundaries, and gradients with gaps in one dimension or in three."""
    grads = [filled(name, dtype, seed) for seed, name in enumerate(LAYOUTS)]
    values = noise(500_000).to(dtype)
    grads += [values[:n] for n in (1023, 1024, 1025)] + [values[1:2050]]
    grads.append(values[7].expand(40, 30))
    grads.append(values[:360].reshape(6, 5, 12)[::2, 1:, ::5].transpose(0, 2))
    grads.append(values[:9000].reshape(2, 4500).t()[3:])
    grads.append(values[: 3 * 2000].reshape(2000, 3)[:, :2].t())  # the inner dimension longer than a tile
    return grads


@DTYPES
def test_squares_equal_reference(dtype: torch.dtype) -> None:
    grads = odd_gradients(dtype)
    ours, expected = TRITON.grad_norm(grads), REFERENCE.grad_norm(grads)
    assert same_bits(ours, expected)
    exact = sum(float(g.double().square().sum()) for g in grads)
    assert float(ours.sum()) == pytest.approx(exact, rel=1e-12 if dtype == torch.float64 else 1e-6)
    changed = list(grads)
    changed[list(LAYOUTS).index("size_50021")] = filled("size_50021", dtype, 6).index_fill(0, torch.tensor([77]), 3.0)
    assert not same_bits(ours, REFERENCE.grad_norm(changed))  # the negative control


def test_squares_of_several_tiles_a_sum() -> None:
    """More tiles than sums: the lanes go on from tile to tile, and from one gradient to the next."""
    grads = [noise(500_000)[:n].float() for n in (430_001, 5, 0, 499_000, 120_000, 1_000)]
    ours = TRITON.grad_norm(grads)
    assert same_bits(ours, REFERENCE.grad_norm(grads))
    assert not same_bits(ours, REFERENCE.grad_norm(grads[::-1]))  # the negative control: order shows


@pytest.mark.long
@pytest.mark.parametrize("tiles", [1, 2])
def test_squares_of_several_runs_a_sum(tiles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above with runs of fewer tiles than the sums have."""
    grads = [noise(500_000)[:n].float() for n in (430_001, 5, 0, 499_000, 120_000, 1_000)]
    whole = TRITON.grad_norm(grads)
    monkeypatch.setattr("radam_fused.backends.triton.grad_norm_kernel.NORM_RUN", tiles)
    monkeypatch.setattr("radam_fused.backends.reference.grad_norm.NORM_RUN", tiles)
    ours = TRITON.grad_norm(grads)
    assert same_bits(ours, REFERENCE.grad_norm(grads))
    assert same_bits(ours, whole) == (tiles == 2)  # no sum has more than two tiles here


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_squares_of_special_values(value: float) -> None:
    grads = [torch.tensor([1.0, value, -0.0]), torch.ones(5)]
    ours = TRITON.grad_norm(grads)
    assert same_bits(ours, REFERENCE.grad_norm(grads))
    assert not same_bits(ours, REFERENCE.grad_norm([torch.ones(3), torch.ones(5)]))


@DTYPES
def test_squares_as_they_are_compiled(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """With sums that have no tiles written by the kernel, as on a GPU, into memory that is not zero."""
    expected = REFERENCE.grad_norm(odd_gradients(dtype))
    monkeypatch.setattr("radam_fused.backends.triton.grad_norm.skips_empty", lambda device: False)
    made = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args, **kwargs: made(*args, **kwargs).fill_(7.0))
    assert same_bits(TRITON.grad_norm(odd_gradients(dtype)), expected)
    monkeypatch.setattr("radam_fused.backends.triton.grad_norm.skips_empty", lambda device: True)
    monkeypatch.setattr(torch.Tensor, "new_zeros", torch.Tensor.new_empty)
    assert not same_bits(TRITON.grad_norm(odd_gradients(dtype)), expected)  # the negative control


def test_squares_without_an_element() -> None:
    assert same_bits(TRITON.grad_norm([torch.zeros(0), torch.zeros(3, 0)]), torch.zeros(1, 1024, dtype=torch.float64))


def test_squares_refuse_what_they_cannot_read() -> None:
    with pytest.raises(ValueError, match="gradient 1"):
        TRITON.grad_norm([torch.zeros(3), torch.zeros(3, dtype=torch.float64)])
    with pytest.raises(TypeError, match="int32"):
        TRITON.grad_norm([torch.zeros(3, dtype=torch.int32)])
