"""The same parameters under FusedRAdam and under an optimizer of torch, step by step."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
"""The largest deviation allowed, relative to the largest value of the parameter."""
TORCH = 2e-5
"""Further than this torch's own float32 is never from float64 here: so close it stays a judge."""

SHAPES = [(7, 5), (), (1,), (0,), (257,), (2, 3, 4, 5), (33, 17)]
RUNS = [("cpu", False), ("cpu", True), ("reference", False)]
"""Backend and flatten."""
TRITON_RUN = ("triton", True)
"""Interpreted, the Triton kernel is quick only where all parameters make one segment; it joins in a few tests."""


def run_id(value: object) -> str | None:
    return {True: "flatten", False: "apart"}.get(value) if isinstance(value, bool) else None


SAME_AS: dict[type[torch.optim.Optimizer], dict[str, Any]] = {
    torch.optim.RAdam: {},
    torch.optim.Adam: {"rectification": "none"},
    torch.optim.AdamW: {"rectification": "none", "decoupled_weight_decay": True},
}
"""The options that make FusedRAdam each of these."""


class Pair:
    """The same parameters under FusedRAdam (``own``), an optimizer of torch (``other``), and in float64 (``exact``)."""

    def __init__(
        self,
        options: dict[str, Any] | None = None,
        other: type[torch.optim.Optimizer] = torch.optim.RAdam,
        other_options: dict[str, Any] | None = None,
        *,
        backend: str = "cpu",
        flatten: bool = False,
        dtype: torch.dtype = torch.float32,
        shapes: Iterable[tuple[int, ...]] = SHAPES,
        group_options: list[dict[str, Any]] | None = None,
        **own_options: Any,
    ) -> None:
        self.generator = torch.Generator().manual_seed(7)
        self.dtype = dtype
        device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
        values = [self.noise(shape, 0.1) for shape in shapes]
        self.own = [nn.Parameter(v.to(device, copy=True)) for v in values]
        self.other = [nn.Parameter(v.to(device, copy=True)) for v in values]
        self.exact = [nn.Parameter(v.to(device, torch.float64)) for v in values]
        options = options or {}
        self.own_opt = FusedRAdam(
            self.groups(self.own, group_options), backend=backend, flatten=flatten, **{**options, **own_options}
        )
        self.other_opt = other(
            self.groups(self.other, group_options), **(options if other_options is None else other_options)
        )
        self.exact_opt = FusedRAdam(
            self.groups(self.exact, group_options), backend="reference", **{**options, **SAME_AS[other]}
        )

    @property
    def opts(self) -> tuple[torch.optim.Optimizer, ...]:
        return self.own_opt, self.other_opt, self.exact_opt

    @staticmethod
    def groups(params: list[nn.Parameter], options: list[dict[str, Any]] | None) -> Any:
        """The parameters dealt out over groups with these options."""
        if options is None:
            return params
        return [{"params": params[i :: len(options)], **copy.deepcopy(option)} for i, option in enumerate(options)]

    def noise(self, shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=self.generator, dtype=torch.float64)).to(self.dtype)

    def step(self, missing: Iterable[int] = ()) -> None:
        """One step of both from the same noise, parameter by parameter of another size; some get no gradient.

        The noise is larger than what a coupled decay adds: where the two nearly cancel, Adam's first step, which has
        the size of lr whatever the gradient's, would show their rounding errors enlarged.
        """
        for i, (p, q, r) in enumerate(zip(self.own, self.other, self.exact, strict=True)):
            if i in missing:
                p.grad = q.grad = r.grad = None
                continue
            grad = self.noise(tuple(p.shape), 10.0 ** (i % 4 - 1)).to(p.device)
            q.grad, r.grad = grad.clone(), grad.double()
            if p.grad is None:
                p.grad = grad
            else:
                p.grad.copy_(grad)
        for opt in self.opts:
            opt.step()

    @staticmethod
    def error(params: list[nn.Parameter], truth: list[nn.Parameter]) -> float:
        """The largest deviation of a parameter, relative to its largest value."""
        errors = [((p - q).abs().max() / q.abs().max()).item() for p, q in zip(params, truth, strict=True) if q.numel()]
        assert all(error == error for error in errors)
        return max(errors)

    def same_steps(self) -> bool:
        own = [self.own_opt.state.get(p, {}).get("step", 0) for p in self.own]
        return own == [self.other_opt.state.get(q, {}).get("step", 0) for q in self.other]

    def close(self) -> bool:
        tolerance = TOLERANCE[self.dtype]
        if self.dtype == torch.float64:
            return self.error(self.own, self.other) < tolerance
        torchs = self.error(self.other, self.exact)
        assert torchs < TORCH
        return self.error(self.own, self.exact) < tolerance and self.error(self.own, self.other) < tolerance + torchs


GROUPS = [
    {"lr": 3e-3},
    {"betas": (0.8, 0.99), "weight_decay": 0.05},
    {"eps": 1e-5, "maximize": True, "weight_decay": 0.1, "decoupled_weight_decay": True},
]
