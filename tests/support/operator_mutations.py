"""Valid arguments of every operator, in memory with guards around it, and mutations of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from radam_fused.numerics.layout import layout_hash
from radam_fused.numerics.scalars import compute_scalars, group_scalars
from radam_fused.options import GROUP_DEFAULTS
from tests.support.hostile import LARGEST, freed, shrunk

Arguments = dict[str, Any]
GUARD = 64
"""Elements on both sides of a tensor."""
CAPACITY = 1024
SHAPES = ((300,), (4, 20), ())
STARTS = (0, 512, 768)


def guarded(values: Tensor) -> Tensor:
    """The same values in the middle of a larger storage."""
    around = torch.full((values.numel() + 2 * GUARD,), 77, dtype=values.dtype)
    inside = around[GUARD : GUARD + values.numel()].view(values.shape)
    return inside.copy_(values)


def some(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return guarded(torch.randn(shape, generator=generator).to(dtype))


FORMATS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp64": {"param": torch.float64, "moments": torch.float64},
    "bf16": {"param": torch.bfloat16, "moments": torch.bfloat16, "stochastic": True},
    "int8": {"moments": torch.int8},
    "split": {"param": torch.bfloat16, "master": torch.int16},
    "fp32_master": {"param": torch.float16, "master": torch.float32},
    "kahan": {"param": torch.bfloat16, "master": torch.bfloat16},
}


def step(form: str, rule: int) -> Arguments:
    """A step over three parameters, one of them 0-d, with two rows of scalars."""
    given = FORMATS[form]
    dtype, moments = given.get("param", torch.float32), given.get("moments", torch.float32)
    codes = moments == torch.int8
    params = [some(shape, dtype, k) for k, shape in enumerate(SHAPES)]
    places = [[start, layout_hash(p.shape, p.stride())] for start, p in zip(STARTS, params, strict=True)]
    numbers = [compute_scalars(GROUP_DEFAULTS, t) for t in (rule, 9)]
    master = given.get("master")
    return {
        "params": params,
        "grads": [some(shape, dtype, 10 + k) for k, shape in enumerate(SHAPES)],
        "exp_avg": guarded(torch.zeros(CAPACITY, dtype=moments)),
        "exp_avg_sq": guarded(torch.zeros(CAPACITY, dtype=torch.uint8 if codes else moments)),
        "segments": guarded(torch.tensor(places)),
        "scalar_index": guarded(torch.tensor([0, 1, 0])),
        "scalars": guarded(torch.tensor(numbers, dtype=torch.float64)),
        "zero_grads": rule % 2 == 0,
        "scales": guarded(torch.zeros(2, CAPACITY // 256)) if codes else None,
        "master": None if master is None else guarded(torch.zeros(CAPACITY, dtype=master)),
        "stochastic": given.get("stochastic", False),
        "rng_offsets": guarded(torch.tensor([0, 512, 768])) if rule % 3 == 0 else None,
    }


def grad_norm(form: str, rule: int) -> Arguments:
    dtype = FORMATS[form].get("param", torch.float32)
    return {"grads": [some(shape, dtype, 20 + k + rule) for k, shape in enumerate(((5000,), *SHAPES))]}


def scalars(form: str, rule: int) -> Arguments:
    """The scalars of two groups, which three segments use."""
    norm = some((2, 1024), torch.float64, rule).abs()
    return {
        "group_scalars": guarded(torch.tensor([group_scalars(GROUP_DEFAULTS, lr) for lr in (1e-3, 1e-2)]).double()),
        "sources": guarded(torch.tensor([[0, 0], [1, 2]])),
        "counted": guarded(torch.tensor([1.0, 0.0, 1.0])),
        "steps": guarded(torch.tensor([5.0, 0.0, 7.0])),
        "taken": guarded(torch.tensor([5.0, 0.0, 7.0]).double()),
        "lr": guarded(torch.tensor([0.1, 0.2])) if rule % 2 else None,
        "partial_sums": guarded(norm) if rule % 3 else None,
        "max_grad_norm": 0.5,
        "grad_scale": guarded(torch.tensor([8.0])) if rule % 2 else None,
        "found_inf": guarded(torch.tensor([float(rule % 5 == 0)])) if rule % 3 else None,
    }


VALID: dict[str, Callable[[str, int], Arguments]] = {"step": step, "grad_norm": grad_norm, "scalars": scalars}
WRITTEN = {
    "step": ("params", "grads", "exp_avg", "exp_avg_sq", "scales", "master"),
    "grad_norm": (),
    "scalars": ("steps", "taken"),
}
"""What each operator may write."""

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int8, torch.uint8)
DTYPES += (torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn)


def _strided(tensor: Tensor) -> Tensor:
    """Every second element of twice the memory."""
    return guarded(torch.stack([tensor, tensor], dim=-1))[..., 0]


def _set(tensor: Tensor, value: float) -> Tensor:
    if tensor.numel():
        flat = tensor.view(-1)
        flat[int(abs(value)) % len(flat) if abs(value) < 2**31 else 0] = value
    return tensor


TENSORS: dict[str, Callable[[Tensor], Any]] = {
    **{f"dtype {dtype}": lambda t, dtype=dtype: guarded(t.detach().to(dtype)) for dtype in DTYPES},
    "flattened": lambda t: t.reshape(-1),
    "a dimension more": lambda t: t.unsqueeze(0),
    "one less": lambda t: t[:-1],
    "one more": lambda t: guarded(torch.cat([t, t[:1]])),
    "the first": lambda t: t.reshape(-1)[:1].reshape(()),
    "empty": lambda t: t.reshape(-1)[:0],
    "empty of its shape": lambda t: t[..., :0],
    "strided": _strided,
    "transposed": lambda t: guarded(t.t().contiguous()).t(),
    "expanded": lambda t: guarded(t.reshape(-1)[:1].clone()).expand(t.shape),
    "overlapping itself": lambda t: t.as_strided(t.shape, (1,) * t.dim(), t.storage_offset()),
    "moved by one": lambda t: t.as_strided(t.shape, t.stride(), t.storage_offset() + 1),
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "mkldnn": lambda t: t.to_mkldnn(),
    "freed": lambda t: freed(t.clone()),
    "shrunk": lambda t: shrunk(t.clone()),
    "requires a gradient": lambda t: t.detach().requires_grad_(),
    "negative bit": torch._neg_view,
    "conjugate bit": lambda t: torch.view_as_real(torch.complex(t.double(), t.double()).conj())[..., 1],
    "zero tensor": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
    "copy on write": torch._lazy_clone,
    "None": lambda t: None,
    "a number": lambda t: 3,
    "text": lambda t: "no",
    "a list": lambda t: [t],
    **{f"holds {v!r}": lambda t, v=v: _set(t, v) for v in (-1, 1, 3, 64, 512, 1023, 2**40, LARGEST, -LARGEST - 1)},
    **{f"holds {v!r}": lambda t, v=v: _set(t, v) for v in (float("nan"), float("inf"), -0.0, 1e300, 1e-310, 2.5)},
}
LISTS: dict[str, Callable[[list[Any]], Any]] = {
    "shorter": lambda ts: ts[:-1],
    "longer": lambda ts: [*ts, *ts[:1]],
    "twice the same": lambda ts: [ts[0], ts[0], *ts[2:]],
    "none": lambda ts: [],
    "reversed": lambda ts: ts[::-1],
    "with None": lambda ts: [None, *ts[1:]],
    "with a number": lambda ts: [1.0, *ts[1:]],
    "no list": lambda ts: ts[0],
    "None": lambda ts: None,
}
OTHERS: dict[str, Any] = {
    **{repr(v): v for v in (None, True, 0, -1, 2**70, 0.5, -1.0, float("nan"), float("inf"), 1e308, "text", [], 1j)},
    "a tensor": torch.tensor(1.0),
    "tensors": torch.ones(3),
}
