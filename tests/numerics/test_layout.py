"""The flat index space: aligned, disjoint segments, and plans that last while nothing changes."""

from __future__ import annotations

import pytest

pytest.importorskip("hypothesis", reason="requirements/dev.txt has it")

import torch
from hypothesis import given
from hypothesis import strategies as st

from radam_fused.numerics.layout import ALIGNMENT, SMALL, SMALL_ALIGNMENT, is_dense, moment_strides, segment_starts
from radam_fused.state.bucket import Bucket
from radam_fused.step.plan import plan_for
from tests.support.helpers import LAYOUTS


@given(st.lists(st.integers(0, 10_000), max_size=50))
def test_segments_are_aligned_and_disjoint(lengths: list[int]) -> None:
    starts, total = segment_starts(lengths)
    end = 0
    for start, length in zip(starts, lengths, strict=True):
        assert start % (ALIGNMENT if length >= SMALL else SMALL_ALIGNMENT) == 0
        assert end <= start < end + ALIGNMENT
        end = start + length
    assert end <= total < end + ALIGNMENT
    assert total % ALIGNMENT == 0


def test_small_aligned_tensors_leave_no_gaps() -> None:
    starts, total = segment_starts([64] * 10_000)
    assert starts[-1] == 9_999 * 64
    assert total == 640_000


def test_past_two_to_the_31() -> None:
    starts, total = segment_starts([2**31 - 1, 5, 2**32])
    assert starts == [0, 2**31, 2**31 + 256]
    assert total == 2**31 + 256 + 2**32


@pytest.mark.parametrize("layout", LAYOUTS)
def test_moment_strides_are_torchs(layout: str) -> None:
    """As ``zeros_like(p, memory_format=torch.preserve_format)`` has them, for dense parameters."""
    p = LAYOUTS[layout](torch.float32)
    assert is_dense(p) == (layout != "strided")
    if is_dense(p):
        assert moment_strides(p) == torch.zeros_like(p).stride()
    else:
        assert moment_strides(p) == p.contiguous().stride()


@pytest.mark.parametrize(
    ("tensor", "dense"),
    [
        (torch.zeros(4, 1, 5).transpose(0, 2), True),
        (torch.zeros(4, 6)[:, :5], False),
        (torch.zeros(6)[::2], False),
        (torch.zeros(3, 1).expand(3, 4), False),
        (torch.zeros(0, 3).t(), True),
    ],
    ids=["permuted", "cropped", "stepped", "expanded", "empty"],
)
def test_is_dense(tensor: torch.Tensor, dense: bool) -> None:
    assert is_dense(tensor) == dense


def bucket() -> Bucket:
    return Bucket([torch.zeros(n) for n in (5, 0, 300)], [0, 1, 1])


def test_views_share_the_flat_buffers() -> None:
    b = bucket()
    state = b.state(2)
    state["exp_avg"].fill_(3.0)
    assert b.exp_avg[b.starts[2] : b.starts[2] + 300].eq(3.0).all()
    assert b.exp_avg.sum() == 900.0
    state["step"].fill_(7.0)
    assert b.counts.shown.tolist() == [0.0, 0.0, 7.0]


def test_a_plan_lasts_while_nothing_changes() -> None:
    b = bucket()
    plan = plan_for(b, [])
    assert plan.pairs == [(0, 0), (1, 1)]
    assert plan.scalar_index.tolist() == [0, 1, 1]
    b.counts.add(plan.present)
    assert plan_for(b, []) is plan
    assert b.counts.taken.tolist() == [1.0, 1.0, 1.0]


def test_a_plan_is_rebuilt_when_a_gradient_goes_missing_or_a_step_is_edited() -> None:
    b = bucket()
    b.counts.add(plan_for(b, []).present)
    without = plan_for(b, [2])
    assert (without.present, without.pairs) == ([0, 1], [(0, 0), (1, 1)])
    b.counts.add(without.present)
    assert b.counts.taken.tolist() == [2.0, 2.0, 1.0]
    assert plan_for(b, []).pairs == [(0, 0), (1, 1), (1, 2)]
    b.state(0)["step"].fill_(40.0)
    assert plan_for(b, []).pairs == [(0, 0), (1, 1), (1, 2)]
    assert b.counts.taken.tolist() == [40.0, 2.0, 1.0]
