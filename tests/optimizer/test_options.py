"""Bad input: a clear error that names the argument, its value and what is allowed, before anything is written."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import radam_fused
from radam_fused import FusedRAdam
from tests.support.helpers import same_bits


def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.linspace(-1, 1, math.prod(shape)).reshape(shape).to(dtype))


# Hyperparameters.

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
    monkeypatch.setattr(radam_fused.backends, "available_backends", lambda: here)
    monkeypatch.setenv("RADAM_FUSED_BACKEND", "cuda" if by_environment else "cpu")
    name = "RADAM_FUSED_BACKEND" if by_environment else "backend"
    with pytest.raises(RuntimeError, match=f"{name} = 'cuda' cannot run here: no library for it was built"):
        FusedRAdam([parameter(3)], backend="auto" if by_environment else "cuda")


# Parameters.


def expanded() -> nn.Parameter:
    return nn.Parameter(torch.ones(1).expand(4))


def overlapping() -> nn.Parameter:
    return nn.Parameter(torch.ones(6).unfold(0, 3, 1))


def with_gradient(tensor: Tensor) -> Tensor:
    """A tensor of any dtype with a gradient; without one nothing is asked of its dtype."""
    tensor.grad = torch.ones_like(tensor)
    return tensor


PARAMETERS: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("empty_list", lambda: [], ValueError, "empty parameter list"),
    ("empty_generator", lambda: iter(()), ValueError, "empty parameter list"),
    ("one_tensor", lambda: torch.ones(3), TypeError, "iterable"),
    ("set", lambda: [{"params": {parameter(3)}}], TypeError, "ordered"),
    ("not_a_tensor", lambda: [3.0], TypeError, "float"),
    ("non-leaf", lambda: [parameter(3) * 2], ValueError, "non-leaf"),
    (
        "integer",
        lambda: [parameter(3), with_gradient(torch.arange(3))],
        TypeError,
        r"\[0\]\['params'\]\[1\] is torch.int64: must be .*torch.float32",
    ),
    (
        "bool",
        lambda: [with_gradient(torch.ones(3, dtype=torch.bool))],
        TypeError,
        "torch.bool: must be one of .*torch.bfloat16",
    ),
    (
        "float8",
        lambda: [nn.Parameter(torch.ones(3).to(torch.float8_e4m3fn))],
        TypeError,
        "torch.float8_e4m3fn: must be one of .*torch.float32",
    ),
    ("sparse", lambda: [nn.Parameter(torch.eye(3).to_sparse())], TypeError, "sparse_coo: must be torch.strided"),
    ("expanded", lambda: [expanded()], ValueError, r"expanded \(strides \(0,\)\)"),
    ("overlapping", lambda: [overlapping()], ValueError, "share memory"),
]


@pytest.mark.parametrize(("make", "error", "message"), [c[1:] for c in PARAMETERS], ids=[c[0] for c in PARAMETERS])
def test_bad_parameters(make: Callable, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FusedRAdam(make())


def test_bad_parameter_is_named_by_its_name() -> None:
    with pytest.raises(TypeError, match=r"parameter 'count' is torch\.int64"):
        FusedRAdam([("weight", parameter(3)), ("count", with_gradient(torch.arange(3)))])


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_duplicate_in_a_group() -> None:
    p = parameter(3)
    with pytest.raises(ValueError, match=r"param_groups\[0\]: a parameter appears twice"):
        FusedRAdam([p, parameter(4), p])


def test_duplicate_across_groups() -> None:
    p = parameter(3)
    with pytest.raises(ValueError, match="more than one parameter group"):
        FusedRAdam([{"params": [p]}, {"params": [parameter(4), p]}])


def shared_pair() -> list[nn.Parameter]:
    values = torch.ones(4)
    return [nn.Parameter(values), nn.Parameter(values)]


ADDED: dict[str, tuple[Callable[[nn.Parameter], Any], dict[str, Any]]] = {
    "duplicate": (lambda old: [parameter(2), old], {}),
    "twice": (lambda old: [parameter(2)] * 2, {}),
    "integer": (lambda old: [parameter(2), with_gradient(torch.arange(3))], {}),
    "expanded": (lambda old: [expanded()], {}),
    "non-leaf": (lambda old: [parameter(2) * 2], {}),
    "bad_lr": (lambda old: [parameter(2)], {"lr": -1.0}),
    "other_differentiable": (lambda old: [parameter(2)], {"differentiable": True}),
    "names_missing": (lambda old: [("name", parameter(2))], {}),
}


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
@pytest.mark.parametrize("flatten", [False, True], ids=["apart", "flatten"])
@pytest.mark.parametrize("steps", [0, 3], ids=["before", "after_3_steps"])
@pytest.mark.parametrize("case", ADDED)
def test_failed_add_param_group_changes_nothing(case: str, steps: int, flatten: bool) -> None:
    make, options = ADDED[case]
    check_failed_add_param_group(make, options, steps, flatten)


@pytest.mark.parametrize("steps", [0, 3], ids=["before", "after_3_steps"])
def test_failed_add_param_group_with_shared_memory_changes_nothing(steps: int) -> None:
    """Only flatten refuses it."""
    check_failed_add_param_group(lambda old: shared_pair(), {}, steps, flatten=True)


def check_failed_add_param_group(make: Callable, options: dict, steps: int, flatten: bool) -> None:
    p, twin = parameter(3), parameter(3)
    opt, twin_opt = FusedRAdam([p], flatten=flatten), FusedRAdam([twin])
    for _ in range(steps):
        step_with_ones(opt)
        step_with_ones(twin_opt)
    groups = copy.deepcopy(opt.state_dict()["param_groups"])
    with pytest.raises((ValueError, TypeError, NotImplementedError)):
        opt.add_param_group({"params": make(p), **options})
    assert opt.state_dict()["param_groups"] == groups
    assert [id(q) for q in opt.param_groups[0]["params"]] == [id(p)]
    for _ in range(3):
        step_with_ones(opt)
        step_with_ones(twin_opt)
    assert same_bits(p, twin)


def step_with_ones(opt: torch.optim.Optimizer) -> None:
    for group in opt.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    opt.step()


# Gradients.


class Elsewhere(nn.Parameter):
    """A parameter whose gradient is what a test puts there, unchecked by torch."""

    found: Tensor | None = None
    grad = property(lambda self: self.found, lambda self, value: setattr(self, "found", value))


def sparse(p: nn.Parameter) -> Tensor:
    return torch.ones_like(p).to_sparse()


GRADIENTS: dict[str, tuple[Callable[[nn.Parameter], Tensor], type[Exception], str]] = {
    "sparse": (sparse, RuntimeError, "does not support sparse gradients; its layout is torch.sparse_coo"),
    "on_meta": (
        lambda p: torch.ones_like(p, device="meta"),
        ValueError,
        "is on meta: must be on cpu",
    ),
    "shorter": (lambda p: torch.ones(2, dtype=p.dtype), ValueError, r"has shape \(2,\): must have .*\(3,\)"),
    "longer": (lambda p: torch.ones(300, dtype=p.dtype), ValueError, r"has shape \(300,\): must have .*\(3,\)"),
    "broadcastable": (lambda p: torch.ones(1, dtype=p.dtype), ValueError, r"has shape \(1,\): must have .*\(3,\)"),
    "same_numel": (lambda p: torch.ones(3, 1, dtype=p.dtype), ValueError, r"has shape \(3, 1\): must have .*\(3,\)"),
    "integer": (lambda p: torch.ones(3, dtype=torch.int32), TypeError, "is torch.int32: must be one of"),
    "complex": (lambda p: torch.ones(3, dtype=torch.complex64), TypeError, "is torch.complex64: must be one of"),
    "other_precision": (
        lambda p: torch.ones(3, dtype=torch.float32 if p.dtype == torch.float64 else torch.float64),
        TypeError,
        r"is torch.float\d\d: must be one of .* for a torch.\w+ parameter",
    ),
}

BUCKETS = {"one": (torch.float32,), "last_of_three": (torch.float32, torch.bfloat16, torch.float64)}


@pytest.mark.parametrize("steps", [0, 2], ids=["first_step", "third_step"])
@pytest.mark.parametrize("dtypes", BUCKETS.values(), ids=BUCKETS)
@pytest.mark.parametrize(("make", "error", "message"), GRADIENTS.values(), ids=GRADIENTS)
def test_bad_gradient_changes_nothing(
    make: Callable, error: type[Exception], message: str, dtypes: tuple, steps: int, backend: str
) -> None:
    """Nor does it where only the last of several buckets has one; and training goes on with a good one."""
    if torch.cuda.is_available():
        backend = {"triton": "reference"}.get(backend, backend)
    params = [Elsewhere(parameter(3, dtype=dtype).detach()) for dtype in dtypes for _ in range(2)]
    opt = FusedRAdam([{"params": params[:1]}, {"params": params[1:]}], backend=backend, weight_decay=0.1)
    for _ in range(steps):
        step_with_ones(opt)
    before = snapshot(opt, params)
    for p in params:
        p.grad = torch.ones_like(p)
    params[-1].grad = make(params[-1])
    place = rf"param_groups\[1\]\['params'\]\[{len(params) - 2}\]"
    with pytest.raises(error, match=f"gradient of {place}.*{message}"):
        opt.step()
    assert unchanged(before, snapshot(opt, params))
    step_with_ones(opt)
    assert not unchanged(before, snapshot(opt, params))


@pytest.mark.parametrize("name", ["sparse", "shorter", "longer", "broadcastable", "same_numel"])
@pytest.mark.parametrize("dtypes", BUCKETS.values(), ids=BUCKETS)
@pytest.mark.parametrize("steps", [0, 2], ids=["first_step", "third_step"])
def test_bad_gradient_under_flatten(name: str, dtypes: tuple, steps: int) -> None:
    make, error, message = GRADIENTS[name]
    params = [Elsewhere(parameter(3, dtype=dtype).detach()) for dtype in dtypes for _ in range(2)]
    opt = FusedRAdam(params, flatten=True, weight_decay=0.1)
    for _ in range(steps):
        step_with_ones(opt)
    before = snapshot(opt, params)
    for p in params:
        p.grad = torch.ones_like(p)
    params[-1].grad = make(params[-1])
    with pytest.raises(error, match=rf"\['params'\]\[{len(params) - 1}\].*{message}"):
        opt.step()
    assert unchanged(before, snapshot(opt, params))
    opt.zero_grad()
    step_with_ones(opt)
    assert not unchanged(before, snapshot(opt, params))


def snapshot(opt: FusedRAdam, params: list[Any]) -> list[Any]:
    """Parameters, moments and step counts."""
    states = [opt.state.get(p, {}) for p in params]
    return [
        [p.detach().clone() for p in params],
        [sorted(state) for state in states],
        [value.clone() for state in states for value in state.values()],
    ]


def unchanged(before: list[Any], after: list[Any]) -> bool:
    tensors = [list(zip(a, b, strict=True)) if len(a) == len(b) else [] for a, b in zip(before, after, strict=True)]
    return (
        before[1] == after[1]
        and all(same_bits(a, b) for a, b in tensors[0])
        and all(same_bits(a, b) for a, b in tensors[2])
    )


def test_bad_gradient_is_named_by_the_parameters_name() -> None:
    p = Elsewhere(torch.ones(3))
    opt = FusedRAdam([("head.bias", p)])
    p.grad = torch.ones(4)
    with pytest.raises(ValueError, match=r"gradient of parameter 'head.bias' has shape \(4,\)"):
        opt.step()


@pytest.mark.parametrize("flatten", [False, True], ids=["apart", "flatten"])
def test_sparse_embedding(flatten: bool) -> None:
    """As torch.optim.RAdam, with a RuntimeError that says so."""
    embedding = nn.Embedding(9, 3, sparse=True)
    opt = FusedRAdam(embedding.parameters(), flatten=flatten)
    before = embedding.weight.detach().clone()
    embedding.weight.grad = None
    embedding(torch.tensor([1, 4])).sum().backward()
    assert embedding.weight.grad.is_sparse
    with pytest.raises(RuntimeError, match="FusedRAdam does not support sparse gradients"):
        opt.step()
    assert same_bits(embedding.weight, before)
    assert not any(entry["step"] for entry in opt.state.values())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("elements", [2, 300], ids=["shorter", "longer"])
def test_parameter_whose_data_got_another_shape(elements: int, backend: str) -> None:
    """Its moments no longer fit it: an error rather than a step into a neighbour's."""
    params = [parameter(3), parameter(4)]
    opt = FusedRAdam(params, backend=backend)
    step_with_ones(opt)
    params[0].data = torch.zeros(elements)
    before = snapshot(opt, params)
    with pytest.raises((ValueError, RuntimeError), match=rf"params'\]\[0\].*\({elements},\).*\(3,\)"):
        step_with_ones(opt)
    assert unchanged(before, snapshot(opt, params))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_parameter_whose_data_got_another_dtype(backend: str) -> None:
    """As `model.double()` after the optimizer has stepped: its moments are float32."""
    params = [parameter(3), parameter(4)]
    opt = FusedRAdam(params, backend=backend)
    step_with_ones(opt)
    for p in params:
        p.grad = None
        p.data = p.data.double()
    before = snapshot(opt, params)
    with pytest.raises((ValueError, TypeError, RuntimeError), match=r"params'\]\[0\].*float64.*float32"):
        step_with_ones(opt)
    assert unchanged(before, snapshot(opt, params))
