"""The Triton step kernel with zeroed gradients and skipped steps, interpreted, against ``reference``, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from radam_fused.backends.ops import OPERATORS
from radam_fused.backends.triton import tables as triton_tables
from radam_fused.numerics.layout import layout_hash, segment_starts
from radam_fused.numerics.scalars import SKIP_STEP, compute_scalars
from radam_fused.options import GROUP_DEFAULTS
from tests.support.helpers import LAYOUTS, all_same_bits, filled


class Step:
    """A step of every layout, each with a plain gradient, a strided one and one of another order."""

    def __init__(self, dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
        names = [name for name in LAYOUTS for _ in range(2)]
        self.params = [filled(name, dtype, seed) for seed, name in enumerate(names)]
        self.grads = [
            torch.stack([g, g], -1)[..., 0] if k % 2 else g.clone(memory_format=torch.preserve_format)
            for k, g in enumerate(filled(name, grad_dtype, seed + 50) for seed, name in enumerate(names))
        ]
        starts, length = segment_starts([p.numel() for p in self.params])
        self.segments = torch.tensor(
            [(start, layout_hash(p.shape, p.stride())) for start, p in zip(starts, self.params, strict=True)]
        )
        moments = torch.float64 if dtype == torch.float64 else torch.float32
        self.moments = [torch.rand(length, generator=torch.Generator().manual_seed(k)).to(moments) for k in range(2)]
        self.rows = torch.tensor([compute_scalars(GROUP_DEFAULTS, t) for t in (3, 9, 9)], dtype=torch.float64)
        self.rows[2, 8] = SKIP_STEP
        self.scalar_index = torch.arange(len(self.params)) % 3

    def run(self, backend: str, zero_grads: bool) -> None:
        OPERATORS[backend].step(
            self.params, self.grads, *self.moments, self.segments, self.scalar_index, self.rows, zero_grads
        )

    def tensors(self) -> list[Tensor]:
        return [*self.params, *self.grads, *self.moments]


@pytest.mark.parametrize("zero_grads", [False, True], ids=["left", "zeroed"])
@pytest.mark.parametrize(
    ("dtype", "grad_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.bfloat16),
    ],
    ids=["fp32", "fp64", "bf16-grad_fp32", "fp32-grad_fp16", "bf16"],
)
def test_step_equals_reference(dtype: torch.dtype, grad_dtype: torch.dtype, zero_grads: bool) -> None:
    ours, theirs, before = (Step(dtype, grad_dtype) for _ in range(3))
    ours.run("triton", zero_grads)
    theirs.run("reference", zero_grads)
    assert all_same_bits(ours.tensors(), theirs.tensors())
    assert all(not g.any() for g in ours.grads) == zero_grads
    skipped = [p for k, p in enumerate(ours.params) if k % 3 == 2]
    assert all_same_bits(skipped, [p for k, p in enumerate(before.params) if k % 3 == 2])
    if not zero_grads:
        assert all_same_bits(ours.grads, before.grads)
    # The negative control: the same without a skipped row.
    before.rows[2, 8] = 1.0
    before.run("triton", zero_grads)
    assert not all_same_bits(before.tensors(), ours.tensors())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.segments.__setitem__((-1, 0), 10**9), "start"),
        (lambda s: s.segments.__setitem__((-1, 0), -64), "start"),
        (lambda s: s.scalar_index.__setitem__(-1, 3), "scalar_index"),
        (lambda s: setattr(s, "rows", s.rows[:, :8]), "scalars"),
        (lambda s: setattr(s, "rows", s.rows.float()), "scalars"),
        (lambda s: s.moments.__setitem__(1, torch.zeros(64)), "exp_avg"),
        (lambda s: setattr(s, "scalar_index", s.scalar_index[:-1]), "one entry a segment"),
    ],
    ids=["start", "negative_start", "row", "row_columns", "row_dtype", "moments", "count"],
)
def test_step_refuses_before_it_writes(change, message: str) -> None:
    step = Step(torch.float32, torch.float32)
    step.run("triton", zero_grads=False)  # the tables of a good step are there
    change(step)
    before = [t.clone() for t in step.tensors()]
    with pytest.raises((ValueError, RuntimeError), match=message):
        step.run("triton", zero_grads=False)
    assert all_same_bits(step.tensors(), before)


def uploads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tables each upload from now on carries."""
    carried: list[int] = []
    upload = triton_tables._upload

    def counting(device: torch.device, parts: list[Tensor], capturing: bool) -> list[Tensor]:
        carried.append(len(parts))
        return upload(device, parts, capturing)

    monkeypatch.setattr(triton_tables, "_upload", counting)
    return carried


def test_tables_are_kept_and_follow_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unchanged table is not made again; other gradients, layouts or scalar indices need another table."""
    ours, theirs = Step(torch.float32, torch.float32), Step(torch.float32, torch.float32)
    monkeypatch.setattr(triton_tables, "_kept", {})
    carried = uploads(monkeypatch)

    def both_step() -> None:
        ours.run("triton", zero_grads=False)
        theirs.run("reference", zero_grads=False)
        assert all_same_bits(ours.tensors(), theirs.tensors())

    both_step()
    both_step()
    assert carried == [2, 0]
    for step in (ours, theirs):
        step.grads[3] = step.grads[3] * 2.0 + 1.0
    both_step()
    for step in (ours, theirs):
        step.scalar_index.fill_(1)
    both_step()
    both_step()
    assert carried == [2, 0, 1, 1, 0]


def test_tables_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_tables, "KEPT", 3)
    monkeypatch.setattr(triton_tables, "_kept", {})
    carried = uploads(monkeypatch)
    for k in (0, 1, 2, 0, 3, 0, 1):  # the fourth takes the place of the second, which was used least lately
        table = triton_tables.Table(lambda k=k: torch.tensor([k, k]), place=k, facts="unchanged")
        assert triton_tables.on_device(torch.device("cpu"), [table])[0].tolist() == [k, k]
    assert carried == [1, 1, 1, 0, 1, 0, 1]
    assert len(triton_tables._kept) == 3
