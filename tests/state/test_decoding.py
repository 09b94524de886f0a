"""Both moments of an entry, in each form that a checkpoint may hold, by the formulas of docs/precision.md."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from radam_fused.state.codec import CODES, OLD_CODES, decoded, of_elements
from radam_fused.state.codec import _in_memory_order as in_memory_order
from tests.support.helpers import same_bits

M, ROOT = torch.tensor([0.5, -2.0, 3.0]), torch.tensor([2.0, 0.25, 1.5])


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.complex64, torch.complex64),
    ],
    ids=str,
)
def test_moments_as_they_are(dtype: torch.dtype, expected: torch.dtype) -> None:
    entry = {"exp_avg": M.to(dtype), "exp_avg_sq": ROOT.to(dtype)}
    m, v = decoded(entry)
    assert (m.dtype, v.dtype) == (expected, expected)
    assert torch.equal(m, M.to(expected))
    assert torch.equal(v, ROOT.to(expected))


def test_a_ratio_and_its_root() -> None:
    m, v = decoded({"exp_avg_ratio": M, "root_exp_avg_sq": ROOT})
    assert same_bits(m, M * ROOT)
    assert same_bits(v, ROOT * ROOT)


def test_a_first_moment_beside_a_root() -> None:
    m, v = decoded({"exp_avg": M.half(), "root_exp_avg_sq": ROOT.half()})
    assert (m.dtype, v.dtype) == (torch.float32, torch.float32)
    assert torch.equal(m, M)
    assert torch.equal(v, ROOT * ROOT)


def test_codes_of_earlier_versions() -> None:
    """v was linear in its fourth root, m in m / sqrt(v)."""
    code, sq_code = torch.tensor([127, -127, 0]).to(torch.int8), torch.tensor([255, 51, 0]).to(torch.uint8)
    entry = dict(zip(OLD_CODES, (code, sq_code, torch.tensor([0.5]), torch.tensor([4.0])), strict=True))
    m, v = decoded(entry)
    root = torch.tensor([4.0, 4.0 / 25.0, 0.0])
    torch.testing.assert_close(v, root * root, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(m, torch.tensor([0.5, -0.5, 0.0]) * root, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(
    "code",
    [torch.zeros(4, 300), torch.zeros(300, 4).t(), torch.zeros(4, 400)[:, :300]],
    ids=["row-major", "transposed", "with gaps"],
)
def test_each_code_has_the_scale_of_its_block(code: Tensor) -> None:
    scales = torch.arange(1.0, 6.0)
    spread = of_elements(scales, code)
    assert spread.shape == code.shape
    expected = scales.repeat_interleave(256)[:1200]
    assert torch.equal(in_memory_order(spread), expected)
    assert of_elements(spread, code) is spread
    assert in_memory_order(code).shape == (1200,)


def test_all_names_are_known() -> None:
    """The negative control: an entry that lacks one of its parts is none of the forms."""
    for names in (CODES, OLD_CODES, ("exp_avg", "exp_avg_sq")):
        with pytest.raises(AssertionError):
            decoded(dict.fromkeys(names[1:], M))
