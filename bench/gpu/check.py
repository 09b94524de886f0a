"""Checks the timed state: one more step of the candidate beside the same step of the `reference` backend.

The candidate's parameters and moments, as the timed steps left them, are copied into one flat array each. Reference
takes one step from there; it computes every element independently, so the layout does not matter. The candidate takes
the same step. For FusedRAdam the bits must be equal. A candidate whose step changes nothing fails.

Of more than `MOST` elements, whole tensors from both ends are compared: copies of the largest cases would not fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.optimizers.baselines import HYPERPARAMETERS
from bench.optimizers.candidates import Runner
from radam_fused import FusedRAdam

TOLERANCE = 1e-5
"""For baselines in fp32: largest difference relative to the largest parameter; a step moves it by 1e-3 and more."""

MOST = 2**31
"""Elements; all of Llama-3.2-1B is compared."""


@dataclass
class Check:
    """The result of the comparison.

    Attributes:
        step: the step that was compared.
        moved: the share of the parameters that the step changed.
        same_bits: whether parameters and moments have reference's bits.
        difference: the largest difference of parameters relative to the largest.
    """

    step: int
    moved: float
    same_bits: bool
    difference: float


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    """A copy of all elements as one array, each tensor in its order in memory."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether the bits are equal; the values contain no NaN."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.dtype.itemsize]
    return a.dtype == b.dtype and torch.equal(a.view(integer), b.view(integer))


def compared(params: Sequence[Tensor], most: int = MOST) -> list[Tensor]:
    """All parameters; of more than `most` elements, whole tensors alternately from both ends up to that number."""
    left, right = 0, len(params)
    room = most
    while left < right:
        from_left = left + right <= len(params)
        room -= params[left if from_left else right - 1].numel()
        if room < 0:
            break
        left, right = (left + 1, right) if from_left else (left, right - 1)
    return [*params[:left], *params[right:]]


def _moments(runner: Runner, params: Iterable[Tensor], name: str) -> Tensor:
    return _flat(runner.optimizer.state[p][name] for p in params)


@torch.no_grad()
def _expected(runner: Runner, params: Sequence[Tensor]) -> tuple[int, Tensor, dict[str, Tensor]]:
    """The number of the next step, the parameters before it, and reference's parameters and moments after it."""
    before = _flat(params)
    param = torch.nn.Parameter(before.clone())
    grads = [p.grad for p in params if p.grad is not None]
    param.grad = _flat(grads)
    taken = int(runner.optimizer.state[params[0]]["step"])
    state: dict[str, Any] = {"step": torch.tensor(float(taken))}
    for name in ("exp_avg", "exp_avg_sq"):
        state[name] = _moments(runner, params, name)
    reference = FusedRAdam([param], backend="reference", **HYPERPARAMETERS)
    reference.load_state_dict({"state": {0: state}, "param_groups": reference.state_dict()["param_groups"]})
    del state, grads
    reference.step()
    moments = {name: reference.state[param][name] for name in ("exp_avg", "exp_avg_sq")}
    return taken + 1, before, {"param": param.detach(), **moments}


@torch.no_grad()
def against_reference(runner: Runner) -> Check:
    """Takes one more step with the candidate and with reference, and compares them."""
    params = compared(runner.params)
    step, before, expected = _expected(runner, params)
    runner.step()
    after = _flat(params)
    moved = float((after != before).sum(dtype=torch.int64)) / max(after.numel(), 1)
    del before
    same = _equal(after, expected["param"])
    largest = float(expected["param"].abs().max())
    difference = float((after - expected.pop("param")).abs().max()) / largest
    del after
    for name in ("exp_avg", "exp_avg_sq"):
        same = same and _equal(_moments(runner, params, name), expected.pop(name))
    return Check(step, moved, same, difference)
