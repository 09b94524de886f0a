"""Random models and options for the properties: parameters of many kinds, and what an optimizer can be asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

SHAPES = [(), (0,), (1,), (5,), (4, 3), (0, 3), (2, 3, 1), (17, 16), (4099,)]
"""(4099,) is large enough for 8-bit moments, and no multiple of a block."""
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda t: t.clone(memory_format=torch.contiguous_format),
    "transposed": lambda t: t.t().clone(memory_format=torch.contiguous_format).t() if t.dim() == 2 else t.clone(),
    "strided": lambda t: torch.stack([t, torch.full_like(t, 9.0)], -1)[..., 0],
    "misaligned": lambda t: torch.cat([torch.zeros(1, dtype=t.dtype), t.flatten()])[1:].view(t.shape),
    "permuted": lambda t: t.permute([*reversed(range(t.dim()))]).contiguous().permute([*reversed(range(t.dim()))]),
}


class Marked(nn.Parameter):
    """A subclass, as libraries mark their parameters."""


@dataclass(frozen=True)
class Spec:
    """One parameter."""

    shape: tuple[int, ...]
    layout: str
    dtype: torch.dtype
    frozen: bool
    marked: bool
    seed: int

    def make(self) -> nn.Parameter:
        generator = torch.Generator().manual_seed(self.seed)
        value = LAYOUTS[self.layout](torch.randn(self.shape, generator=generator).to(self.dtype))
        return (Marked if self.marked else nn.Parameter)(value, not self.frozen)


ALL_DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
SMALL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HALVES = (torch.bfloat16, torch.float16)
STATE_OPTIONS: list[tuple[tuple[torch.dtype, ...], dict[str, Any]]] = [
    (ALL_DTYPES, {}),
    (ALL_DTYPES, {}),
    (ALL_DTYPES, {"rounding": "stochastic"}),
    (SMALL_DTYPES, {"state_dtype": torch.bfloat16}),
    (SMALL_DTYPES, {"state_dtype": torch.float16}),
    (SMALL_DTYPES, {"state_dtype": torch.int8}),
    (SMALL_DTYPES, {"state_dtype": torch.int8, "master_weights": "fp32"}),
    (ALL_DTYPES, {"master_weights": "fp32"}),
    ((torch.bfloat16,), {"master_weights": "split"}),
    (HALVES, {"master_weights": "kahan"}),
]
"""Dtypes of parameters, and how their state is stored."""

seeds = st.integers(0, 9999)
flags = st.booleans()


def specs(dtypes: tuple[torch.dtype, ...]) -> st.SearchStrategy[Spec]:
    return st.builds(
        Spec,
        shape=st.sampled_from(SHAPES),
        layout=st.sampled_from(sorted(LAYOUTS)),
        dtype=st.sampled_from(dtypes),
        frozen=st.sampled_from([False, False, False, True]),
        marked=flags,
        seed=seeds,
    )


hyperparameters = st.fixed_dictionaries(
    {
        "lr": st.sampled_from([0.0, 1e-3, 0.1]),
        "betas": st.sampled_from([(0.9, 0.999), (0.8, 0.9), (0.0, 0.99), (0.9, 0.99999), (0.3, 0.4), (0.9, 0.0)]),
        "eps": st.sampled_from([1e-8, 0.0, 1e-3]),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "decoupled_weight_decay": flags,
        "maximize": flags,
        "rho_threshold": st.sampled_from([5.0, 4.0]),
        "degenerated_to_sgd": flags,
        "rectification": st.sampled_from(["first_order", "exact", "none"]),
    }
)

SPECIAL = {"nan": float("nan"), "inf": float("inf"), "denormal": 1e-42, "huge": 1e30, "zero": 0.0}
kinds = st.sampled_from(["normal"] * 6 + ["nan", "inf", "denormal", "huge", "zero", "layout", "shared"])


def gradient(p: Tensor, seed: int, kind: str) -> Tensor:
    """A gradient of the parameter's dtype: normal values, with others among them."""
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(p.shape, generator=generator).to(p.dtype)
    if kind in SPECIAL and value.numel():
        value.view(-1)[seed % value.numel()] = SPECIAL[kind]
        if kind in ("zero", "denormal"):
            value.fill_(SPECIAL[kind])
    if kind == "layout":
        value = LAYOUTS[sorted(LAYOUTS)[seed % len(LAYOUTS)]](value)
    return value
