"""Options where they do not belong, and values written into a group later: an error by name, with nothing written."""

from __future__ import annotations

import copy
import inspect
import math
import re
from typing import Any

import pytest
import torch

from radam_fused import FusedRAdam, step_in_backward
from radam_fused.option_hints import HINTS
from tests.support.helpers import same_bits
from tests.support.single_parameters import parameter


def give_gradients(opt: torch.optim.Optimizer, value: float = 1.0) -> None:
    for group in opt.param_groups:
        for p in group["params"]:
            p.grad = torch.full_like(p, value)


def snapshot(opt: torch.optim.Optimizer) -> Any:
    """Parameters and state, by value."""
    return copy.deepcopy([(p.detach(), opt.state.get(p)) for group in opt.param_groups for p in group["params"]])


def equal(a: Any, b: Any) -> bool:
    return all(
        same_bits(p, q) and (s or {}).keys() == (t or {}).keys() and all(same_bits(s[k], t[k]) for k in s or {})
        for (p, s), (q, t) in zip(a, b, strict=True)
    )


# Options of the whole optimizer.

WIDE: dict[str, Any] = {
    "backend": "reference",
    "flatten": True,
    "state_dtype": torch.int8,
    "master_weights": "split",
    "rounding": "stochastic",
    "max_grad_norm": 1e-6,
    "zero_grads": True,
    "offload": True,
}


@pytest.mark.parametrize("name", WIDE)
def test_option_of_the_whole_optimizer_in_a_group(name: str) -> None:
    """Of the constructor, of add_param_group, and written there later; the optimizer stays as it was."""
    option = {name: WIDE[name]}
    message = (
        rf"param_groups\[1\]: {name} = {re.escape(repr(WIDE[name]))}: .* whole optimizer.*FusedRAdam\(\.\.\., {name}"
    )
    with pytest.raises(ValueError, match=message):
        FusedRAdam([{"params": [parameter(3)]}, {"params": [parameter(4)], **option}])
    opt = FusedRAdam([parameter(3)])
    with pytest.raises(ValueError, match=message):
        opt.add_param_group({"params": [parameter(4)], **option})
    assert len(opt.param_groups) == 1
    opt.add_param_group({"params": [parameter(4)]})
    give_gradients(opt)
    opt.step()
    before = snapshot(opt)
    opt.param_groups[1].update(option)
    with pytest.raises(ValueError, match=message):
        opt.step()
    assert equal(before, snapshot(opt))
    del opt.param_groups[1][name]
    opt.step()
    assert not equal(before, snapshot(opt))


@pytest.mark.parametrize("name", WIDE)
def test_the_optimizers_own_value_in_a_group_is_taken(name: str) -> None:
    """The negative control, and what ZeroRedundancyOptimizer gives its local optimizer; but not another one later."""
    options = {"backend": "reference"} if name == "backend" else {name: WIDE[name]}
    dtype = torch.bfloat16 if name in ("master_weights", "rounding") else torch.float32
    opt = FusedRAdam([{"params": [parameter(3, dtype=dtype)], **options}], **options)
    for _ in range(2):
        give_gradients(opt)
        opt.step()
    assert not same_bits(opt.param_groups[0]["params"][0], parameter(3, dtype=dtype))
    opt.param_groups[0][name] = "another"
    with pytest.raises(ValueError, match=rf"param_groups\[0\]: {name} = 'another': .* whole optimizer"):
        opt.step()


ACCEPTED: dict[str, Any] = {
    "initial_lr": 0.1,
    "max_lr": 0.2,
    "min_lr": 0.0,
    "max_momentum": 0.9,
    "base_momentum": 0.8,
    "swa_lr": 0.1,
    "lr_scale": 0.5,
    "layer_name": "head",
    "name": "head",
    "decay_mult": 1.0,
    "lr_mult": 1.0,
    "fused": True,
    "amsgrad": False,
    "bias_correction": True,
    "wd_mult": 0.0,
    "is_expert_parallel": False,
}
"""What torch's schedulers, timm, Megatron and other optimizers' checkpoints put into groups."""


def test_other_keys_of_groups_are_taken_as_they_are() -> None:
    opt = FusedRAdam([{"params": [parameter(3)], **ACCEPTED}])
    opt.add_param_group({"params": [parameter(4)], **ACCEPTED})
    for _ in range(2):
        give_gradients(opt)
        opt.step()
        opt.param_groups[0]["anything"] = 1  # a key more, between two steps
    assert all(group[name] == value for group in opt.param_groups for name, value in ACCEPTED.items())


@pytest.mark.parametrize(("name", "value"), [("amsgrad", True), ("bias_correction", False)])
def test_key_that_would_train_otherwise(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"param_groups\[0\]: {name} = {value}: .*{re.escape(HINTS[name])}"):
        FusedRAdam([{"params": [parameter(3)], name: value}])


def test_torchs_schedulers_write_what_they_like() -> None:
    opt = FusedRAdam([parameter(3)], lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=10)
    for _ in range(9):
        give_gradients(opt)
        opt.step()
        scheduler.step()
    assert opt.param_groups[0]["betas"][0] != 0.9


# Values written into a group.

WRITTEN: dict[str, list[Any]] = {
    "lr": [-1.0, -1, math.nan, math.inf, "0.1", None, True, torch.tensor(-1.0), torch.tensor([0.1, 0.2])],
    "betas": [(0.9, 1.0), (-0.1, 0.9), (0.9,), 0.9, ("0.9", 0.99), [0.9, 1.5], (math.nan, 0.9)],
    "eps": [-1e-8, math.nan, "1e-8"],
    "weight_decay": [-0.1, math.inf, None],
    "rho_threshold": [3.9, math.nan, "5"],
    "rectification": ["first-order", "Exact", None, 1],
    "degenerated_to_sgd": [None, "yes"],
    "decoupled_weight_decay": [None, "yes"],
    "maximize": [None, "yes"],
    "seed": [-1, 2**32, 1.0, None, True],
    "differentiable": [True],
}
CASES = [(name, value) for name, values in WRITTEN.items() for value in values]


def case_id(value: Any) -> str:
    return repr(value).replace("\n", "")


def message_of(name: str) -> str:
    return rf"param_groups\[1\]: {name}(\[\d\])? = "


@pytest.mark.sampled
@pytest.mark.parametrize("capturable", [False, True], ids=["host", "device"])
@pytest.mark.parametrize(("name", "value"), CASES, ids=case_id)
def test_written_value_is_checked_before_the_step(name: str, value: Any, capturable: bool, backend: str) -> None:
    """Where the last of two buckets has it, the first is not stepped either; and a good value is taken again."""
    opt = FusedRAdam(
        [{"params": [parameter(3)]}, {"params": [parameter(4, dtype=torch.float64)]}],
        backend=backend,
        capturable=capturable,
    )
    for _ in range(2):
        give_gradients(opt)
        opt.step()
    before, good = snapshot(opt), opt.param_groups[1][name]
    opt.param_groups[1][name] = value
    with pytest.raises((ValueError, TypeError), match=message_of(name)):
        opt.step()
    assert equal(before, snapshot(opt))
    opt.param_groups[1][name] = good
    opt.step()
    assert not equal(before, snapshot(opt))
    assert [float(state["step"]) for _, state in snapshot(opt)] == [3.0, 3.0]


EQUAL = [
    *(("maximize", 0), ("decoupled_weight_decay", 0), ("degenerated_to_sgd", 1), ("lr", True)),
    *(("weight_decay", False), ("eps", False), ("seed", 0.0), ("seed", False)),
]


@pytest.mark.parametrize("capturable", [False, True], ids=["host", "device"])
@pytest.mark.parametrize(("name", "value"), EQUAL, ids=case_id)
def test_value_that_equals_the_one_before_is_refused_all_the_same(name: str, value: Any, capturable: bool) -> None:
    """Python takes True for 1.0: what was checked before is compared with its type."""
    opt = FusedRAdam([parameter(3)], backend="cpu", lr=1.0, eps=0.0, capturable=capturable)
    for _ in range(2):
        give_gradients(opt)
        opt.step()
    before, good = snapshot(opt), opt.param_groups[0][name]
    assert good == value
    opt.param_groups[0][name] = value
    with pytest.raises(TypeError, match=rf"param_groups\[0\]: {name} = {value}"):
        opt.step()
    assert equal(before, snapshot(opt))
    opt.param_groups[0][name] = good
    opt.step()
    assert not equal(before, snapshot(opt))


@pytest.mark.parametrize("name", ["lr", "betas", "seed"])
def test_missing_value_is_named(name: str, backend: str) -> None:
    opt = FusedRAdam([parameter(3)], backend=backend)
    give_gradients(opt)
    opt.step()
    before = snapshot(opt)
    del opt.param_groups[0][name]
    with pytest.raises(ValueError, match=rf"param_groups\[0\]: has no '{name}'"):
        opt.step()
    assert equal(before, snapshot(opt))


@pytest.mark.parametrize(("name", "value"), [("lr", -1.0), ("rectification", "first-order"), ("differentiable", False)])
def test_written_value_under_differentiable(name: str, value: Any) -> None:
    p, q = parameter(3), parameter(4)
    opt = FusedRAdam([{"params": [p]}, {"params": [q]}], differentiable=True)
    give_gradients(opt)
    before = p.detach().clone(), q.detach().clone()
    opt.param_groups[1][name] = value
    with pytest.raises(ValueError, match=message_of(name)):
        opt.step()
    assert same_bits(p, before[0])
    assert same_bits(q, before[1])
    assert not opt.state


@pytest.mark.parametrize(("name", "value"), [("lr", -1.0), ("rectification", "first-order")])
def test_written_value_under_step_in_backward(name: str, value: Any) -> None:
    p = parameter(3)
    opt = FusedRAdam([p])
    step_in_backward(opt)
    before = p.detach().clone()
    opt.param_groups[0][name] = value
    with pytest.raises(ValueError, match=rf"param_groups\[0\]: {name} = "):
        p.sum().backward()
    assert same_bits(p, before)


def test_written_into_a_list_or_a_tensor() -> None:
    """The objects in the group stay; only what they hold changes."""
    opt = FusedRAdam([parameter(3)], lr=torch.tensor(0.1), betas=[0.9, 0.99])
    for _ in range(2):
        give_gradients(opt)
        opt.step()
    opt.param_groups[0]["betas"][1] = 1.5
    with pytest.raises(ValueError, match=r"param_groups\[0\]: betas\[1\] = 1.5"):
        opt.step()
    opt.param_groups[0]["betas"][1] = 0.99
    opt.step()
    opt.param_groups[0]["lr"].fill_(-1.0)
    with pytest.raises(ValueError, match=r"param_groups\[0\]: lr = -1"):
        opt.step()


def test_group_that_takes_no_part_may_hold_anything() -> None:
    """A group without gradients is looked at when it gets some."""
    opt = FusedRAdam([{"params": [parameter(3)]}, {"params": [parameter(4)]}])
    opt.param_groups[1]["lr"] = -1.0
    opt.param_groups[0]["params"][0].grad = torch.ones(3)
    opt.step()
    give_gradients(opt)
    with pytest.raises(ValueError, match=r"param_groups\[1\]: lr = -1"):
        opt.step()


# Keywords of other optimizers.


@pytest.mark.parametrize("name", HINTS)
def test_keyword_of_another_optimizer_gets_a_hint(name: str) -> None:
    with pytest.raises(TypeError, match=rf"unexpected keyword argument '{name}': {re.escape(HINTS[name])}"):
        FusedRAdam([parameter(3)], **{name: True})


@pytest.mark.parametrize(
    ("name", "hint"),
    [("decoupled_weigth_decay", "did you mean decoupled_weight_decay"), ("xyzzy", "must be one of params, lr, betas")],
)
def test_misspelt_keyword(name: str, hint: str) -> None:
    with pytest.raises(TypeError, match=rf"'{name}': {hint}"):
        FusedRAdam([parameter(3)], **{name: 1})


def test_hints_name_nothing_that_is_here() -> None:
    """And what they recommend is."""
    options = inspect.signature(FusedRAdam).parameters
    assert not HINTS.keys() & options.keys()
    recommended = {match for hint in HINTS.values() for match in re.findall(r"^use (\w+)", hint)}
    assert recommended - {"zero_grad", "radam_fused"} <= options.keys()


def test_signature_is_explicit() -> None:
    """Tools that choose keywords by it see each option, and no catch-all; a subclass gets the hint as well."""
    kinds = {p.kind for p in inspect.signature(FusedRAdam).parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}

    class Mine(FusedRAdam):
        def __init__(self, params: Any, **options: Any) -> None:
            super().__init__(params, **options)

    with pytest.raises(TypeError, match="'fused': every step is fused"):
        Mine([parameter(3)], fused=True)
    assert Mine([parameter(3)], lr=0.5).param_groups[0]["lr"] == 0.5
