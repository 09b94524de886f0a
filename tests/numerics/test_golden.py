"""Trajectories computed with 50 digits, as every backend computes them."""

from __future__ import annotations

import json

import pytest
import torch

from radam_fused import FusedRAdam
from tests.support.paths import ROOT

TRAJECTORIES = json.loads((ROOT / "tests" / "golden" / "trajectories.json").read_text())


TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}
"""Relative to the largest value of a tensor, at every one of up to 400 steps."""


def name_of(trajectory: dict) -> str:
    config = trajectory["config"]
    index = TRAJECTORIES.index(trajectory)
    return f"{index}-lr{config['lr']:g}-b2_{config['betas'][1]:g}-wd{config['weight_decay']:g}"


def worst_error(trajectory: dict, backend: str, dtype: torch.dtype, **changed: object) -> float:
    """The largest deviation from the vectors in units of the tolerance."""
    p = torch.nn.Parameter(torch.tensor(trajectory["p0"], dtype=dtype))
    opt = FusedRAdam([p], backend=backend, **{**trajectory["config"], **changed})
    worst = 0.0
    for t, grad in enumerate(trajectory["grads"], start=1):
        p.grad = torch.tensor(grad, dtype=dtype)
        opt.step()
        expected = trajectory["expected"].get(str(t))
        if expected is None:
            continue
        state = opt.state[p]
        for key, value in (("p", p.detach()), ("exp_avg", state["exp_avg"]), ("exp_avg_sq", state["exp_avg_sq"])):
            truth = torch.tensor(expected[key], dtype=torch.float64)
            allowed = truth.abs().max().clamp_min(1e-300) * TOLERANCE[dtype]
            worst = max(worst, ((value.double() - truth).abs().max() / allowed).item())
    return worst


DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])


@pytest.mark.sampled
@DTYPES
@pytest.mark.parametrize("trajectory", TRAJECTORIES, ids=name_of)
def test_trajectory(trajectory: dict, dtype: torch.dtype, backend: str) -> None:
    if backend == "triton":  # interpreted: the steps up to the branch and well past it, not all 400
        trajectory = {**trajectory, "grads": trajectory["grads"][:24]}
    assert worst_error(trajectory, backend, dtype) < 1.0


@DTYPES
@pytest.mark.parametrize("trajectory", TRAJECTORIES, ids=name_of)
def test_another_beta2_is_noticed(trajectory: dict, dtype: torch.dtype) -> None:
    """The negative control: beta2 off by 1e-5 fails both tolerances."""
    beta1, beta2 = trajectory["config"]["betas"]
    assert worst_error(trajectory, "cpu", dtype, betas=(beta1, beta2 * (1 - 1e-5))) > 1.0
