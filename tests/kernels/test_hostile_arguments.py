"""The step operators at their boundary: hostile arguments raise, name what is wrong, and nothing has been written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from radam_fused.backends.ops import OPERATORS
from radam_fused.numerics.layout import layout_hash
from radam_fused.numerics.scalars import compute_scalars
from radam_fused.options import GROUP_DEFAULTS
from tests.support.helpers import same_bits
from tests.support.hostile import LARGEST, REFUSED, Arguments, freed, meta, shrunk, with_offset

LENGTH, CAPACITY = 4096, 4352


def arguments(moments: torch.dtype = torch.float32, param: torch.dtype = torch.float32, **given: Any) -> Arguments:
    """A step over two parameters, the second one empty."""
    params = [torch.linspace(-1.0, 1.0, LENGTH).to(param), torch.zeros(0, dtype=param)]
    layouts = [layout_hash(p.shape, p.stride()) for p in params]
    codes = moments == torch.int8
    return {
        "params": params,
        "grads": [torch.full_like(p, 0.5) for p in params],
        "exp_avg": torch.zeros(CAPACITY, dtype=moments),
        "exp_avg_sq": torch.zeros(CAPACITY, dtype=torch.uint8 if codes else moments),
        "segments": torch.tensor([[0, layouts[0]], [LENGTH, layouts[1]]]),
        "scalar_index": torch.zeros(2, dtype=torch.int64),
        "scalars": torch.tensor([compute_scalars(GROUP_DEFAULTS, 9)], dtype=torch.float64),
        **({"scales": torch.zeros(2, CAPACITY // 256)} if codes else {}),
        **given,
    }


def put(name: str, index: Any, value: int, **options: Any) -> Callable[[], Arguments]:
    """One number of a table."""

    def made() -> Arguments:
        found = arguments(**options)
        if name == "rng_offsets":
            found["rng_offsets"] = torch.tensor([0, LENGTH])
        found[name][index] = value
        return found

    return made


def change(name: str, by: Callable[[Any], Any], **options: Any) -> Callable[[], Arguments]:
    """One argument, or the first tensor of a list."""

    def made() -> Arguments:
        found = arguments(**options)
        if isinstance(found[name], list):
            found[name][0] = by(found[name][0])
        else:
            found[name] = by(found[name])
        return found

    return made


HALVES = {"moments": torch.bfloat16, "param": torch.bfloat16}
CODES = {"moments": torch.int8}
OFFSETS = torch.tensor([0, LENGTH])

STEPS: dict[str, tuple[Callable[[], Arguments], str]] = {
    **{
        f"start_{value}": (put("segments", (0, 0), value), "start")
        for value in (-64, -(2**63), CAPACITY - LENGTH + 64, LARGEST, LARGEST - 63, LARGEST - 10, 2**62)
    },
    "rng_offsets_of_two_dimensions": (lambda: arguments(rng_offsets=torch.tensor([[0, LENGTH]])), "rng_offsets"),
    "lazy_negative_moments": (change("exp_avg", torch._neg_view), "lazy negative"),
    "lazy_negative_gradient": (change("grads", torch._neg_view), "lazy negative"),
    "start_of_an_empty_segment": (put("segments", (1, 0), CAPACITY + 64), "start"),
    "start_of_codes_near_2^63": (put("segments", (0, 0), LARGEST // 256 * 256 - 256, **CODES), "start"),
    "start_of_codes_between_blocks": (put("segments", (0, 0), 64, **CODES), "start|multiples of 256"),
    **{f"row_{value}": (put("scalar_index", 0, value), "scalar_index") for value in (-1, 1, -(2**63), 10**12)},
    "scalar_index_of_an_empty_segment": (put("scalar_index", 1, -1), "scalar_index"),
    "no_rows": (change("scalars", lambda rows: rows[:0]), "scalar_index"),
    **{
        f"rng_offset_{value}": (put("rng_offsets", 0, value, **HALVES), "rng_offset")
        for value in (-1, -64, -(2**63), LARGEST, LARGEST - 63, LARGEST - LENGTH + 1)
    },
    "rng_offset_-64_of_codes": (put("rng_offsets", 0, -64, **CODES), "rng_offset"),
    "rng_offset_-64_of_rounded_parameters": (
        put("rng_offsets", 0, -64, param=torch.bfloat16, stochastic=True),
        "rng_offset",
    ),
    "rng_offsets_int32": (change("rng_offsets", Tensor.int, rng_offsets=OFFSETS, **HALVES), "rng_offsets"),
    "rng_offsets_too_few": (change("rng_offsets", lambda t: t[:1], rng_offsets=OFFSETS, **HALVES), "rng_offsets"),
    "segments_int32": (change("segments", Tensor.int), "segments"),
    "segments_of_three_columns": (change("segments", lambda t: t.repeat(1, 2)[:, :3].contiguous()), "segments"),
    "segments_expanded": (change("segments", lambda t: t[:1].expand(2, 2)), "segments"),
    "segments_too_few": (change("segments", lambda t: t[:1]), "one entry a segment"),
    "scalar_index_of_int32": (change("scalar_index", Tensor.int), "scalar_index"),
    "scalar_index_of_two_dimensions": (change("scalar_index", lambda t: t[:, None]), "scalar_index"),
    "rows_float32": (change("scalars", Tensor.float), "scalars"),
    "rows_of_ten_columns": (change("scalars", lambda t: t[:, :-1].contiguous()), "scalars"),
    "rows_transposed": (change("scalars", lambda t: t.expand(2, -1).t().contiguous().t()), "scalars"),
    "a_gradient_too_few": (lambda: arguments(grads=[torch.zeros(LENGTH)]), "grads|one entry"),
    "a_parameter_too_few": (lambda: arguments(params=[torch.zeros(LENGTH)]), "one entry|grads has 2 tensors"),
    **{
        f"meta_{name}": (change(name, meta, **options), "on meta|on one device")
        for name, options in {
            **{key: {} for key in ("params", "grads", "exp_avg", "exp_avg_sq", "segments", "scalar_index", "scalars")},
            "rng_offsets": {**HALVES, "rng_offsets": OFFSETS},
            "scales": CODES,
            "master": {"param": torch.bfloat16, "master": torch.zeros(CAPACITY)},
        }.items()
    },
    "meta_but_for_the_moments": (
        lambda: arguments(params=[torch.zeros(LENGTH, device="meta")] * 2, grads=[torch.zeros(0, device="meta")] * 2),
        "on meta|on one device",
    ),
    **{
        f"freed_{name}": (change(name, freed, **options), f"{named}|storage")
        for name, (named, options) in {
            "params": ("parameter", {}),
            "grads": ("gradient", {}),
            **{name: (name, {}) for name in ("exp_avg", "exp_avg_sq", "segments", "scalar_index", "scalars")},
            "scales": ("scales", CODES),
            "master": ("master", {"param": torch.bfloat16, "master": torch.zeros(CAPACITY)}),
            "rng_offsets": ("rng_offsets", {**HALVES, "rng_offsets": OFFSETS.clone()}),
        }.items()
    },
    "freed_parameter_with_an_offset": (change("params", lambda p: freed(with_offset(p))), "storage"),
    "freed_gradient_with_an_offset": (change("grads", lambda g: freed(with_offset(g))), "storage"),
    "freed_expanded_gradient": (change("grads", lambda g: freed(g[:1].clone().expand(LENGTH))), "storage"),
    "shrunk_parameter": (change("params", shrunk), "storage"),
    "shrunk_gradient": (change("grads", shrunk), "storage"),
    "shrunk_moments": (change("exp_avg_sq", shrunk), "storage"),
    "shrunk_transposed_gradient": (
        lambda: arguments(
            params=[torch.zeros(64, 64), torch.zeros(0)],
            grads=[shrunk(torch.zeros(64, 64).t()), torch.zeros(0)],
            segments=torch.tensor([[0, layout_hash([64, 64], [64, 1])], [LENGTH, layout_hash([0], [1])]]),
        ),
        "storage",
    ),
    "short_first_moment": (change("exp_avg", lambda m: m[:-64]), "exp_avg"),
    "short_second_moment": (change("exp_avg_sq", lambda v: v[:64]), "exp_avg"),
    "both_moments_short": (
        lambda: arguments(exp_avg=torch.zeros(LENGTH - 64), exp_avg_sq=torch.zeros(LENGTH - 64)),
        "start",
    ),
    "expanded_moments": (change("exp_avg", lambda m: m[:1].expand(CAPACITY)), "exp_avg"),
    "moments_of_two_dimensions": (change("exp_avg", lambda m: m.view(-1, 64)), "exp_avg"),
    "one_buffer_for_both_moments": (
        lambda: (lambda m: arguments(exp_avg=m, exp_avg_sq=m))(torch.zeros(CAPACITY)),
        "must not share memory",
    ),
    "moments_that_overlap": (
        lambda: (lambda m: arguments(exp_avg=m[:CAPACITY], exp_avg_sq=m[64:]))(torch.zeros(CAPACITY + 64)),
        "must not share memory",
    ),
    "short_scales": (change("scales", lambda s: s[:, :-1].contiguous(), **CODES), "scales"),
    "flat_scales": (change("scales", torch.flatten, **CODES), "scales"),
    "no_scales": (lambda: arguments(**CODES, scales=None), "scales"),
    "short_master": (lambda: arguments(param=torch.bfloat16, master=torch.zeros(64)), "master"),
    "integer_master": (lambda: arguments(param=torch.bfloat16, master=torch.zeros(CAPACITY).int()), "master"),
    "expanded_parameter": (
        lambda: arguments(
            params=[torch.zeros(1).expand(LENGTH), torch.zeros(0)],
            segments=torch.tensor([[0, layout_hash([LENGTH], [0])], [LENGTH, layout_hash([0], [1])]]),
        ),
        "share memory",
    ),
    "mkldnn_parameter": (change("params", Tensor.to_mkldnn), "layout|Mkldnn"),
    "sparse_parameter": (change("params", Tensor.to_sparse), "layout|Sparse"),
    "sparse_gradient": (change("grads", Tensor.to_sparse), "sparse|Sparse"),
    "integer_parameter": (change("params", Tensor.int), "dtype|int32"),
    "float8_gradient": (change("grads", lambda g: g.to(torch.float8_e4m3fn)), "dtype|float8"),
    "longer_gradient": (change("grads", lambda g: torch.zeros(LENGTH + 1)), "shape"),
    "other_parameter_dtype": (change("params", Tensor.half), "dtype|must be torch.float16"),
}


def written(found: Arguments) -> list[Tensor]:
    """The tensors that a step writes, those whose storage was not freed."""
    tensors = [*found["params"], *found["grads"], *(found.get(k) for k in ("exp_avg", "exp_avg_sq", "scales"))]
    tensors = [t for t in (*tensors, found.get("master")) if t is not None and t.layout == torch.strided]
    return [t for t in tensors if not t.is_meta and t.untyped_storage().nbytes() >= t.numel() * t.element_size()]


@pytest.mark.parametrize("made", STEPS.values(), ids=list(STEPS))
def test_step_refuses(made: tuple[Callable[[], Arguments], str], backend: str) -> None:
    make, message = made
    found = make()
    before = [t.clone() for t in written(found)]
    with pytest.raises(REFUSED, match=message):
        OPERATORS[backend].step(**found)
    assert all(torch.equal(a, b) for a, b in zip(before, written(found), strict=True))


@pytest.mark.parametrize(
    ("options", "start", "rng_offset"),
    [
        ({}, 0, None),
        ({}, CAPACITY - LENGTH, None),
        (HALVES, CAPACITY - LENGTH, 0),
        (HALVES, 0, LARGEST - LENGTH),
        (CODES, 256, 2**40),
        ({"param": torch.bfloat16, "stochastic": True}, 64, 2**38 - 64),
    ],
    ids=["at_0", "at_the_end", "halves_at_the_end", "largest_rng_offset", "codes", "rounded_parameters"],
)
def test_what_is_just_allowed_is_done(options: dict, start: int, rng_offset: int | None, backend: str) -> None:
    """The negative control: the same arguments, as large as they may be, are stepped, with the bits of reference."""
    results = []
    for which in (backend, "reference"):
        found = arguments(**options)
        found["segments"][:, 0] = torch.tensor([start, CAPACITY])
        if rng_offset is not None:
            found["rng_offsets"] = torch.tensor([rng_offset, 0])
        before = [t.clone() for t in written(found)]
        OPERATORS[which].step(**found)
        results.append(written(found))
        assert not torch.equal(before[0], results[-1][0])
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


def test_a_call_with_nothing_but_meta_tensors_does_nothing(backend: str) -> None:
    """A fake kernel looks at shapes only, whatever the tables contain."""
    real = arguments()
    moved = {k: [*map(meta, v)] if isinstance(v, list) else meta(v) for k, v in real.items()}
    OPERATORS[backend].step(**{**moved, "segments": real["segments"], "scalar_index": real["scalar_index"]})
    assert OPERATORS[backend].grad_norm(moved["grads"]).is_meta
