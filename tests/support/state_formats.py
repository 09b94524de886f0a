"""Every state format as a case for the step operators: buffers, parameters of many layouts, scalars of every kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from radam_fused.numerics.layout import ALIGNMENT, layout_hash
from radam_fused.numerics.scalars import SKIP_STEP, compute_scalars
from radam_fused.numerics.state_format import master_dtype, second_dtype
from radam_fused.options import GROUP_DEFAULTS
from tests.support.helpers import LAYOUTS, bits, filled, gradients

SHORT = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int8: "int8"}
HALF = (torch.float16, torch.bfloat16)

GROUPS = (
    {"lr": 0.01},
    {"lr": 0.02, "weight_decay": 0.1, "maximize": True, "seed": 7},
    {"lr": 0.03, "weight_decay": 0.1, "decoupled_weight_decay": True, "rho_threshold": 4.0, "seed": 2**32 - 1},
    {"lr": 0.04, "degenerated_to_sgd": False, "betas": (0.5, 0.99), "eps": 0.0},
    {"lr": 0.05, "rectification": "none", "eps": 1e-3},
    {"lr": 0.01, "rectification": "none", "betas": (0.8, 0.4), "weight_decay": 1e-4, "decoupled_weight_decay": True},
)


@dataclass(frozen=True)
class Format:
    """How parameters and state are stored."""

    param: torch.dtype
    grad: torch.dtype
    state: torch.dtype
    master: str | None = None
    stochastic: bool = False

    def __str__(self) -> str:
        kept = self.master or ("stochastic" if self.stochastic else "alone")
        return f"{SHORT[self.param]}_{kept}-grad_{SHORT[self.grad]}-state_{SHORT[self.state]}"


def _formats() -> list[Format]:
    forms = []
    kept: list[tuple[str | None, bool]] = [(None, False), (None, True), ("fp32", False), ("split", False)]
    kept.append(("kahan", False))
    grads = list(SHORT)[:3]
    for param in grads:
        for master, stochastic in kept:
            if (param == torch.float32 and (master or stochastic)) or (param == torch.float16 and master == "split"):
                continue
            for state in SHORT:
                if state != torch.float32 or master or stochastic:
                    forms.append(Format(param, grads[len(forms) % 3], state, master, stochastic))
    return forms


FORMATS = _formats()


class Case:
    """Parameters of every layout with their state in a form, before and during a few steps."""

    def __init__(self, form: Format, layouts: list[str] | None = None, first: int = 256) -> None:
        self.form = form
        self.layouts = list(LAYOUTS) if layouts is None else layouts
        self.params = [filled(name, form.param, seed) for seed, name in enumerate(self.layouts)]
        starts, end = [], first  # not at the beginning: the random bits depend on the position
        self.rng_offsets: Tensor | None = None
        for p in self.params:
            starts.append(end)
            end += -(-p.numel() // ALIGNMENT) * ALIGNMENT
        self.exp_avg = torch.zeros(end, dtype=form.state)
        self.exp_avg_sq = torch.zeros(end, dtype=second_dtype(form.state))
        self.scales = torch.zeros(2, end // ALIGNMENT) if form.state == torch.int8 else None
        master = master_dtype(form.master, form.param)
        self.master = None if master is None else torch.zeros(end, dtype=master)
        if form.master == "fp32":
            self._copy_masters(starts)
        layout = [(start, layout_hash(p.shape, p.stride())) for start, p in zip(starts, self.params, strict=True)]
        self.segments = torch.tensor(layout, dtype=torch.int64)
        self.scalar_index = torch.tensor([k % len(GROUPS) for k in range(len(self.params))], dtype=torch.int64)

    def _copy_masters(self, starts: list[int]) -> None:
        assert self.master is not None
        for k, (start, p) in enumerate(zip(starts, self.params, strict=True)):
            if k % 3:  # others find a master copy that is not the parameter's, and take the parameter
                strides = torch.empty_like(p).stride()
                self.master.as_strided(p.shape, strides, start).copy_(p)

    def rows(self, t: int) -> Tensor:
        rows = torch.tensor([compute_scalars({**GROUP_DEFAULTS, **group}, t) for group in GROUPS], dtype=torch.float64)
        if t == 4:
            rows[1, 8] = SKIP_STEP
        return rows

    def run(self, step: Callable[..., None], steps: int | tuple[int, int] = 7) -> list[Tensor]:
        """The bits of parameters and state after so many steps from t = 1 on, or those from one t to another."""
        begin, end = (1, steps) if isinstance(steps, int) else steps
        for t in range(begin, end + 1):
            grads = gradients([p.shape for p in self.params], self.form.grad, t)
            for k in range(t % 3, len(grads), 3):  # in the parameter's own layout
                grads[k] = torch.empty_like(self.params[k], dtype=self.form.grad).copy_(grads[k])
            if t == 5:  # zeros for some steps: blocks underflow to zero
                grads = [grad * 0 for grad in grads]
            buffers = self.exp_avg, self.exp_avg_sq, self.segments, self.scalar_index, self.rows(t)
            step(self.params, grads, *buffers, False, self.scales, self.master, self.form.stochastic, self.rng_offsets)
        return self.bits()

    def bits(self) -> list[Tensor]:
        """Every parameter and buffer, as integers in which all NaN are one."""
        found = [*self.params, self.exp_avg, self.exp_avg_sq, self.scales, self.master]
        return [bits(tensor) if tensor.is_floating_point() else tensor for tensor in found if tensor is not None]

    def names(self) -> list[str]:
        kept = {"scales": self.scales, "master": self.master}
        return [*self.layouts, "exp_avg", "exp_avg_sq", *(name for name, buffer in kept.items() if buffer is not None)]
