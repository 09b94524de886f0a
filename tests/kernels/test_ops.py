"""The operators, as torch.library sees them."""

from __future__ import annotations

import pytest
import torch

from radam_fused.backends.ops import OPERATORS
from radam_fused.numerics.layout import layout_hash
from radam_fused.numerics.scalars import compute_scalars
from radam_fused.options import GROUP_DEFAULTS
from tests.support.helpers import filled, same_bits


def segments(params: list[torch.Tensor], starts: list[int]) -> torch.Tensor:
    return torch.tensor([(start, layout_hash(p.shape, p.stride())) for start, p in zip(starts, params, strict=True)])


def arguments(dtype: torch.dtype = torch.float32, grad_dtype: torch.dtype | None = None) -> tuple:
    params = [filled(name, dtype, k) for k, name in enumerate(["size_257", "transposed", "size_0", "misaligned"])]
    grads = [torch.full(p.shape, 0.5, dtype=grad_dtype or dtype) for p in params]
    moments = torch.float64 if dtype == torch.float64 else torch.float32
    rows = torch.tensor([compute_scalars(GROUP_DEFAULTS, t) for t in (3, 9)], dtype=torch.float64)
    return (
        params,
        grads,
        torch.zeros(4096, dtype=moments),
        torch.zeros(4096, dtype=moments),
        segments(params, [0, 320, 1600, 1600]),
        torch.tensor([0, 1, 0, 1]),
        rows,
    )


@pytest.mark.parametrize(
    ("dtype", "grad_dtype"),
    [(torch.float32, None), (torch.float64, None), (torch.bfloat16, torch.float32)],
    ids=["fp32", "fp64", "bf16-grad_fp32"],
)
def test_opcheck(backend: str, dtype: torch.dtype, grad_dtype: torch.dtype | None) -> None:
    result = torch.library.opcheck(OPERATORS[backend].step, arguments(dtype, grad_dtype))
    assert set(result.values()) == {"SUCCESS"}
    assert len(result) == 4


def test_opcheck_notices_an_undeclared_write() -> None:
    """The negative control: the same check fails for an operator that writes what its schema calls unchanged."""

    @torch.library.custom_op("radam_fused_tests::liar", mutates_args=())
    def liar(x: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        return x.clone()

    liar.register_fake(lambda x: torch.empty_like(x))
    with pytest.raises(torch.testing._internal.optests.generate_tests.OpCheckError):
        torch.library.opcheck(liar, (torch.zeros(3),))


def test_traced_by_torch_compile(backend: str) -> None:
    """The operator stays one node of a compiled graph, on fake tensors as on real ones."""
    expected, traced = arguments(), arguments()
    OPERATORS[backend].step(*expected)
    compiled = torch.compile(lambda *args: OPERATORS[backend].step(*args), backend="aot_eager", fullgraph=True)
    compiled(*traced)
    for a, b in zip((*expected[0], *expected[2:4]), (*traced[0], *traced[2:4]), strict=True):
        assert same_bits(a, b)
    assert not same_bits(expected[0][0], arguments()[0][0])


def broken(position: int, value: object, dtype: torch.dtype = torch.float32) -> tuple:
    args = list(arguments(dtype))
    args[position] = value
    return tuple(args)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (broken(1, [torch.zeros(3)] * 4), "shape"),
        (broken(1, [torch.zeros(257, dtype=torch.float64), *arguments()[1][1:]]), "dtype"),
        (broken(4, segments(arguments()[0], [0, 320, 1600, 4000])), "start"),
        (broken(4, segments(arguments()[1], [0, 320, 1600, 1600])), "strides"),
        (broken(5, torch.tensor([0, 1, 0, 2])), "scalar_index"),
        (broken(4, torch.zeros(1, 2, dtype=torch.int64)), "one entry a segment"),
        (broken(4, torch.zeros(4, dtype=torch.int64)), "one entry a segment"),
        (broken(6, torch.zeros(2, 8, dtype=torch.float64)), "scalars"),
        (broken(6, torch.zeros(2, 9)), "scalars"),
        (broken(2, torch.zeros(4096, dtype=torch.float64)), "exp_avg"),
        (broken(2, torch.zeros(4095)), "exp_avg"),
    ],
    ids=[
        "shape",
        "grad_dtype",
        "start",
        "strides",
        "row",
        "count",
        "columns_of_segments",
        "columns",
        "rows_dtype",
        "moment_dtype",
        "moment_length",
    ],
)
def test_native_refuses_before_it_writes(args: tuple, message: str) -> None:
    """The C++ operator checks all arguments, down to the last tensor of the lists, before the first write."""
    before = [t.clone() for t in (*args[0], args[2], args[3])]
    with pytest.raises(RuntimeError, match=message):
        OPERATORS["cpu"].step(*args)
    assert all(torch.equal(a, b) for a, b in zip(before, (*args[0], args[2], args[3]), strict=True))


@pytest.mark.parametrize("ndim", [1, 3, 6, 9])
def test_any_number_of_dimensions(ndim: int, backend: str) -> None:
    """Strided gradients have no limit of dimensions; each is compared with the same values laid out row-major."""
    shape = (2,) * (ndim - 1) + (3,)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(ndim))
    strided = torch.zeros(*(2 * n for n in shape))[(slice(None, None, 2),) * ndim]
    strided.copy_(values)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    permuted = grad.permute(*reversed(range(ndim))).contiguous().permute(*reversed(range(ndim)))
    rows = torch.tensor([compute_scalars(GROUP_DEFAULTS, 9)], dtype=torch.float64)
    results = []
    for p, g in ((strided, permuted), (values.clone(), grad)):
        m, v = torch.zeros(1024), torch.zeros(1024)
        OPERATORS[backend].step([p], [g], m, v, segments([p], [64]), torch.tensor([0]), rows)
        results.append((p, m, v))
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))
    assert not torch.equal(results[0][0], values)
