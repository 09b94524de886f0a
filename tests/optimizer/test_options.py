"""Bad options: a clear error that names the argument, its value and what is allowed."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

import radam_fused
from radam_fused import FusedRAdam
from radam_fused.backends import registry
from tests.support.single_parameters import parameter

RANGES = {
    "lr": ("finite and at least 0", [-1e-3, math.nan, math.inf, -math.inf]),
    "eps": ("finite and at least 0", [-1e-8, math.nan, math.inf]),
    "weight_decay": ("finite and at least 0", [-0.1, math.nan, math.inf]),
    "rho_threshold": ("at least 4", [3.999, 0.0, -5.0, math.nan, math.inf]),
}
BAD_BETAS = [-0.1, 1.0, 1.5, math.nan, math.inf]

OUT_OF_RANGE: list[tuple[dict[str, Any], str]] = [
    *[
        ({name: value}, f"{name} = {re.escape(repr(value))}: must be {allowed}")
        for name, (allowed, values) in RANGES.items()
        for value in values
    ],
    *[({"betas": (beta, 0.9)}, rf"betas\[0\] = {re.escape(repr(beta))}: must be in \[0, 1\)") for beta in BAD_BETAS],
    *[({"betas": (0.9, beta)}, rf"betas\[1\] = {re.escape(repr(beta))}: must be in \[0, 1\)") for beta in BAD_BETAS],
    ({"lr": torch.tensor([0.1, 0.2])}, r"lr = tensor\(\[.*\]\): .* one element"),
    ({"lr": torch.tensor(-1.0)}, r"lr = .*-1.*: must be finite and at least 0"),
    ({"rectification": "second"}, "rectification = 'second': must be one of .*first_order.*exact.*none"),
    ({"rectification": None}, "rectification = None: must be one of"),
    ({"backend": "gpu"}, "backend = 'gpu': must be one of .*auto.*cuda.*triton.*cpu.*reference"),
    ({"backend": None}, "backend = None: must be one of"),
    *[({"seed": v}, rf"seed = {v}: must be in \[0, 2\*\*32\)") for v in (-1, 2**32)],
    *[({"state_dtype": v}, f"state_dtype = {v!r}: must be one of .*int8") for v in (torch.float64, "int8")],
    *[({"master_weights": v}, f"master_weights = {v!r}: must be one of .*split") for v in ("bf16", True)],
    *[({"rounding": v}, f"rounding = {v!r}: must be one of .*stochastic") for v in ("up", None)],
    ({"rounding": "stochastic", "master_weights": "kahan"}, "rounding = 'stochastic': must be 'nearest' with master"),
    ({"state_dtype": torch.int8, "offload": True}, "state_dtype = torch.int8: must be torch.float32, .* offload"),
    ({"state_dtype": torch.bfloat16, "differentiable": True}, "state_dtype = torch.bfloat16: .* differentiable"),
    ({"master_weights": "fp32", "differentiable": True}, "master_weights = 'fp32': .* differentiable"),
    *[({"max_grad_norm": v}, f"max_grad_norm = {v}: must be None, or above 0") for v in (-1.0, 0, 0.0, float("nan"))],
]
WRONG_KIND: list[tuple[dict[str, Any], str]] = [
    *[
        ({name: value}, f"{name} = {re.escape(repr(value))}: must be a number")
        for name in RANGES
        for value in ("0.1", None, True, 1j)
    ],
    ({"betas": 0.9}, "betas = 0.9: must be a pair"),
    ({"betas": (0.9,)}, r"betas = \(0.9,\): must be a pair"),
    ({"betas": (0.9, 0.99, 0.999)}, "betas = .*0.999.*: must be a pair"),
    ({"betas": ("0.9", 0.99)}, r"betas\[0\] = '0.9': must be a number, in \[0, 1\)"),
    ({"betas": (0.9, None)}, r"betas\[1\] = None: must be a number"),
    *[
        ({name: value}, f"{name} = {value!r}: must be True or False")
        for name in (
            "decoupled_weight_decay",
            "maximize",
            "degenerated_to_sgd",
            "flatten",
            "capturable",
            "differentiable",
            "zero_grads",
        )
        for value in (1, None, "yes")
    ],
    *[({"max_grad_norm": value}, f"max_grad_norm = {value!r}: must be") for value in ("1", True, 1j)],
    *[({"seed": value}, f"seed = {value!r}: must be a whole number") for value in (1.0, None, True)],
    ({"foreach": "yes"}, "foreach = 'yes': must be None, True or False"),
]


def option_id(value: Any) -> str | None:
    return "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else ""


@pytest.mark.parametrize(("options", "message"), OUT_OF_RANGE, ids=option_id)
def test_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FusedRAdam([parameter(3)], **options)


@pytest.mark.parametrize(("options", "message"), WRONG_KIND, ids=option_id)
def test_wrong_kind(options: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        FusedRAdam([parameter(3)], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        case
        for case in OUT_OF_RANGE + WRONG_KIND
        if not case[0].keys() & {"backend", "flatten", "state_dtype", "master_weights", "rounding"}
        and not case[0].keys() & {"max_grad_norm", "zero_grads", "offload", "differentiable"}
    ],
    ids=option_id,
)
def test_bad_hyperparameter_of_a_group(options: dict, message: str) -> None:
    """The same errors for one group's own values, when it comes at first and when it is added."""
    first, second = parameter(3), parameter(4)
    opt = FusedRAdam([first])
    for attempt in (
        lambda: FusedRAdam([{"params": [first]}, {"params": [second], **options}]),
        lambda: opt.add_param_group({"params": [second], **options}),
    ):
        with pytest.raises((ValueError, TypeError, NotImplementedError), match=message):
            attempt()
    assert [group["params"] for group in opt.param_groups] == [[first]]


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.0},
        {"lr": 1},
        {"lr": torch.tensor(0.1)},
        {"lr": torch.tensor([[0.1]])},
        {"betas": (0, 0)},
        {"betas": [0.9, 0.99]},
        {"eps": 0.0},
        {"weight_decay": 0},
        {"rho_threshold": 4},
        {"rectification": "exact"},
        {"rectification": "none"},
        {"foreach": True},
        {"foreach": False},
        {"state_dtype": torch.float32, "master_weights": None, "rounding": "nearest", "zero_grads": False},
    ],
    ids=option_id,
)
def test_values_at_the_edge_are_taken(options: dict) -> None:
    """The negative control of the errors above."""
    p = parameter(3)
    opt = FusedRAdam([p], **options)
    p.grad = torch.ones(3)
    opt.step()
    assert p.isfinite().all()


def test_unknown_argument() -> None:
    with pytest.raises(TypeError, match="amsgrad"):
        FusedRAdam([parameter(3)], amsgrad=True)


def test_options_are_keywords_after_the_sixth() -> None:
    with pytest.raises(TypeError, match="positional"):
        FusedRAdam([parameter(3)], 1e-3, (0.9, 0.999), 1e-8, 0.0, False, True)


# Backends.


def test_backend_of_the_environment_must_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RADAM_FUSED_BACKEND", "fast")
    with pytest.raises(ValueError, match=r"RADAM_FUSED_BACKEND = 'fast': must be one of .*cpu"):
        FusedRAdam([parameter(3)])


@pytest.mark.parametrize("by_environment", [False, True], ids=["argument", "environment"])
def test_unavailable_backend_says_why(by_environment: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    here = {**radam_fused.available_backends(), "cuda": "no library for it was built"}
    monkeypatch.setattr(registry, "available_backends", lambda: here)
    monkeypatch.setenv("RADAM_FUSED_BACKEND", "cuda" if by_environment else "cpu")
    name = "RADAM_FUSED_BACKEND" if by_environment else "backend"
    with pytest.raises(RuntimeError, match=f"{name} = 'cuda' cannot run here: no library for it was built"):
        FusedRAdam([parameter(3)], backend="auto" if by_environment else "cuda")
