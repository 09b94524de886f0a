"""The grad_norm and scalars operators at their boundary: hostile arguments raise and name what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from radam_fused import FusedRAdam
from radam_fused.backends.ops import OPERATORS
from radam_fused.numerics.scalars import group_scalars
from radam_fused.options import GROUP_DEFAULTS
from tests.support.hostile import LARGEST, REFUSED, Arguments, freed, meta, shrunk, with_offset

SQUARES: dict[str, tuple[Callable[[], list[Tensor]], str]] = {
    "none": (list, "at least one|no tensor arguments"),
    "meta_second": (lambda: [torch.ones(4), torch.ones(4, device="meta")], "on meta"),
    "meta_first": (lambda: [torch.ones(4, device="meta"), torch.ones(4)], "on cpu|on meta"),
    "integers": (lambda: [torch.ones(4, dtype=torch.int32)], "float32"),
    "complex": (lambda: [torch.ones(4, dtype=torch.complex64)], "float32"),
    "two_dtypes": (lambda: [torch.ones(4), torch.ones(4).double()], "dtype|float32"),
    "sparse": (lambda: [torch.ones(4), torch.ones(4).to_sparse()], "layout|Sparse"),
    "mkldnn": (lambda: [torch.ones(4).to_mkldnn()], "layout|Mkldnn"),
    "freed": (lambda: [torch.ones(3), freed(torch.ones(64))], "storage"),
    "freed_with_an_offset": (lambda: [freed(with_offset(torch.ones(64)))], "storage"),
    "freed_and_expanded": (lambda: [freed(torch.ones(1).expand(64))], "storage"),
    "shrunk": (lambda: [shrunk(torch.ones(5000))], "storage"),
}


@pytest.mark.parametrize("made", SQUARES.values(), ids=list(SQUARES))
def test_squares_refuse(made: tuple[Callable[[], list[Tensor]], str], backend: str) -> None:
    grads = made[0]()
    with pytest.raises(REFUSED, match=made[1]):
        OPERATORS[backend].grad_norm(grads)


def rows_arguments(**given: Any) -> Arguments:
    """The scalars of one group, which two segments use."""
    return {
        "group_scalars": torch.tensor([group_scalars(GROUP_DEFAULTS, 1e-3)], dtype=torch.float64),
        "sources": torch.tensor([[0, 0]]),
        "counted": torch.ones(2),
        "steps": torch.zeros(2),
        "taken": torch.zeros(2, dtype=torch.float64),
        "lr": None,
        "partial_sums": None,
        "max_grad_norm": 0.0,
        "grad_scale": None,
        "found_inf": None,
        **given,
    }


OPTIONAL = {
    "lr": torch.ones(1),
    "partial_sums": torch.ones(1, 1024, dtype=torch.float64),
    "grad_scale": torch.ones(1),
    "found_inf": torch.zeros(1),
}
ROWS: dict[str, tuple[Callable[[], Arguments], str]] = {
    **{
        f"pairs_{group}_{segment}": (
            lambda group=group, segment=segment: rows_arguments(sources=torch.tensor([[0, 1], [group, segment]])),
            "row 1 names",
        )
        for group, segment in ((-1, 0), (1, 0), (0, -1), (0, 2), (0, -(2**63)), (LARGEST, 0))
    },
    "pairs_float32": (lambda: rows_arguments(sources=torch.zeros(1, 2)), "sources"),
    "pairs_of_three_columns": (lambda: rows_arguments(sources=torch.zeros(1, 3, dtype=torch.int64)), "sources"),
    "pairs_strided": (lambda: rows_arguments(sources=torch.zeros(2, 3, dtype=torch.int64).t()[:, :2]), "sources"),
    "group_scalars_of_15_columns": (
        lambda: rows_arguments(group_scalars=torch.zeros(1, 15, dtype=torch.float64)),
        "group_scalars",
    ),
    "group_scalars_strided": (
        lambda: rows_arguments(group_scalars=torch.zeros(16, 2, dtype=torch.float64).t()),
        "group_scalars",
    ),
    "group_scalars_float32": (lambda: rows_arguments(group_scalars=torch.zeros(1, 16)), "group_scalars"),
    "group_scalars_of_no_group": (
        lambda: rows_arguments(group_scalars=torch.zeros(0, 16, dtype=torch.float64)),
        "row 0 names",
    ),
    "counted_short": (lambda: rows_arguments(counted=torch.ones(1)), "counted"),
    "counted_long": (lambda: rows_arguments(counted=torch.ones(3)), "counted"),
    "steps_float64": (lambda: rows_arguments(steps=torch.zeros(2).double()), "steps"),
    "steps_expanded": (lambda: rows_arguments(steps=torch.zeros(1).expand(2)), "steps"),
    "steps_lazy_negative": (lambda: rows_arguments(steps=torch._neg_view(torch.zeros(2))), "lazy negative"),
    "taken_float32": (lambda: rows_arguments(taken=torch.zeros(2)), "taken"),
    "taken_short": (lambda: rows_arguments(taken=torch.zeros(1, dtype=torch.float64)), "taken"),
    "taken_expanded": (lambda: rows_arguments(taken=torch.zeros(1, dtype=torch.float64).expand(2)), "taken"),
    "lr_of_two_groups": (lambda: rows_arguments(lr=torch.ones(2)), "lr"),
    "lr_integer": (lambda: rows_arguments(lr=torch.ones(1, dtype=torch.int64)), "lr"),
    "lr_half": (lambda: rows_arguments(lr=torch.ones(1).half()), "lr"),
    "lr_of_two_dimensions": (lambda: rows_arguments(lr=torch.ones(1, 1)), "lr"),
    "squares_1023": (lambda: rows_arguments(partial_sums=torch.ones(1, 1023).double()), "partial_sums"),
    "squares_strided": (lambda: rows_arguments(partial_sums=torch.ones(1024, 2).double().t()), "partial_sums"),
    "grad_scale_of_two": (lambda: rows_arguments(grad_scale=torch.ones(2)), "grad_scale"),
    "grad_scale_float64": (lambda: rows_arguments(grad_scale=torch.ones(1).double()), "grad_scale"),
    "found_inf_empty": (lambda: rows_arguments(found_inf=torch.zeros(0)), "found_inf"),
    **{
        f"meta_{name}": (
            lambda name=name: (lambda a: {**a, name: meta(a[name])})(rows_arguments(**OPTIONAL)),
            "on meta|on cpu",
        )
        for name in ("group_scalars", "sources", "counted", "steps", "taken", *OPTIONAL)
    },
    **{
        f"freed_{name}": (
            lambda name=name: (lambda a: {**a, name: freed(a[name].clone())})(rows_arguments(**OPTIONAL)),
            "storage",
        )
        for name in ("group_scalars", "sources", "counted", "steps", "taken", *OPTIONAL)
    },
}


@pytest.mark.parametrize("made", ROWS.values(), ids=list(ROWS))
def test_rows_refuse(made: tuple[Callable[[], Arguments], str], backend: str) -> None:
    make, message = made
    found = make()
    there = not found["steps"].is_meta and found["steps"].untyped_storage().nbytes() > 0
    before = found["steps"].clone() if there else None
    with pytest.raises(REFUSED, match=message):
        OPERATORS[backend].scalars(*found.values())
    assert before is None or torch.equal(found["steps"], before)


def test_rows_of_good_arguments_count(backend: str) -> None:
    """The negative control."""
    found = rows_arguments(**OPTIONAL)
    rows, _ = OPERATORS[backend].scalars(*found.values())
    assert rows.isfinite().all()
    assert found["steps"].tolist() == found["taken"].tolist() == [1.0, 1.0]


@pytest.mark.sampled
@pytest.mark.parametrize("offset", [False, True], ids=["at_0", "with_an_offset"])
@pytest.mark.parametrize("what", ["parameter", "gradient"])
@pytest.mark.parametrize("count", [2, 40])
def test_a_freed_storage_is_named_by_a_step(what: str, offset: bool, count: int, backend: str) -> None:
    """As code that shards parameters frees them: nothing of that launch is stepped, and a later step works."""
    values = [torch.linspace(0.0, 1.0, 70) for _ in range(count)]
    params = [torch.nn.Parameter(with_offset(v) if offset else v.clone()) for v in values]
    optimizer = FusedRAdam([(f"w{k}", p) for k, p in enumerate(params)], lr=0.1, backend=backend)
    for p in params:
        p.grad = with_offset(torch.ones(70)) if offset else torch.ones(70)
    optimizer.step()
    before = [p.detach().clone() for p in params]
    victim = params[1] if what == "parameter" else params[1].grad
    kept = victim.detach().clone()
    freed(victim)
    with pytest.raises(REFUSED, match=f"{'gradient of ' * (what == 'gradient')}parameter 'w1'.* storage"):
        optimizer.step()
    assert all(torch.equal(p, b) for k, (p, b) in enumerate(zip(params, before, strict=True)) if k != 1)
    assert [optimizer.state[p]["step"].item() for p in params] == [1.0] * count
    storage = victim.untyped_storage()
    storage.resize_(kept.numel() * kept.element_size() * (2 if offset else 1))
    victim.detach().copy_(kept)
    optimizer.step()
    assert all(not torch.equal(p, b) for p, b in zip(params, before, strict=True))
