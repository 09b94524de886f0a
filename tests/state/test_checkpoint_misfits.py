"""A state_dict that does not fit raises, and changes nothing."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from radam_fused import FusedRAdam
from tests.support.checkpoints import both_ways, entry, group, grouped, parameters, same, same_state, train

NAMED = r"param_groups\[1\]\['params'\]\[1\]"

MISFITS: dict[str, tuple[Callable[[dict], Any], type[Exception] | tuple[type[Exception], ...], str]] = {
    "no_state": (lambda s: s.pop("state"), ValueError, "has no 'state'"),
    "no_param_groups": (lambda s: s.pop("param_groups"), ValueError, "has no 'param_groups'"),
    "groups_not_a_list": (lambda s: s.update(param_groups=3), TypeError, "param_groups = 3: must be a list of dicts"),
    "group_not_a_dict": (
        lambda s: s.update(param_groups=[3]),
        TypeError,
        r"param_groups\[0\] = 3: must be a dict",
    ),
    "params_not_a_list": (
        lambda s: s["param_groups"][0].update(params=3),
        TypeError,
        r"param_groups\[0\]\['params'\] = 3: must be a list",
    ),
    "state_not_a_dict": (lambda s: s.update(state=[1]), TypeError, r"state = \[1\]: must be a dict of dicts"),
    "entry_not_a_dict": (lambda s: s["state"].update({0: 5}), TypeError, r"state\[0\] = 5: must be a dict"),
    "group_without_params": (lambda s: s["param_groups"][1].pop("params"), ValueError, "params"),
    "a_group_less": (lambda s: s["param_groups"].pop(), ValueError, r"\[2\] parameters, .* \[2, 3\]"),
    "a_group_more": (lambda s: s["param_groups"].append(s["param_groups"][0]), ValueError, r"\[2, 3, 2\].* \[2, 3\]"),
    "a_parameter_less": (lambda s: s["param_groups"][1]["params"].pop(), ValueError, r"\[2, 2\].* \[2, 3\]"),
    "a_parameter_more": (lambda s: s["param_groups"][0]["params"].append(5), ValueError, r"\[3, 3\].* \[2, 3\]"),
    "exp_avg_of_another_shape": (
        entry(exp_avg=torch.zeros(299)),
        ValueError,
        rf"'exp_avg' of {NAMED} has shape \(299,\): must be \(300,\)",
    ),
    "exp_avg_sq_of_another_shape": (
        entry(exp_avg_sq=torch.zeros(300, 1)),
        ValueError,
        rf"'exp_avg_sq' of {NAMED} has shape \(300, 1\): must be \(300,\)",
    ),
    "exp_avg_missing": (entry(exp_avg=...), ValueError, f"{NAMED} has no 'exp_avg'"),
    "exp_avg_sq_missing": (entry(exp_avg_sq=...), ValueError, f"{NAMED} has no 'exp_avg_sq'"),
    "step_missing": (entry(step=...), ValueError, f"{NAMED} has no 'step'"),
    "sgd_state": (
        lambda s: s["state"].update({3: {"momentum_buffer": torch.zeros(300)}}),
        ValueError,
        f"{NAMED} has no 'step'.*momentum_buffer",
    ),
    "step_negative": (entry(step=torch.tensor(-1.0)), ValueError, f"'step' of {NAMED} is -1.0: must be a whole number"),
    "step_fractional": (entry(step=2.5), ValueError, f"'step' of {NAMED} is 2.5: must be a whole number"),
    "step_nan": (entry(step=float("nan")), ValueError, f"'step' of {NAMED} is nan: must be a whole number"),
    "step_inf": (entry(step=float("inf")), ValueError, f"'step' of {NAMED} is inf: must be a whole number"),
    "step_a_string": (entry(step="6"), TypeError, f"'step' of {NAMED} is '6': must be one number"),
    "step_a_vector": (
        entry(step=torch.tensor([6.0, 6.0])),
        TypeError,
        f"'step' of {NAMED} is tensor.*: must be one number",
    ),
    "integer_moments": (
        entry(exp_avg=torch.zeros(300, dtype=torch.int32)),
        TypeError,
        f"'exp_avg' of {NAMED} must be a dense floating-point tensor",
    ),
    "complex_moments": (
        entry(exp_avg=torch.zeros(300, dtype=torch.complex64)),
        TypeError,
        "must be a dense floating-point",
    ),
    "sparse_moments": (
        entry(exp_avg_sq=torch.zeros(300).to_sparse()),
        TypeError,
        "must be a dense floating-point tensor",
    ),
    "moments_not_a_tensor": (entry(exp_avg_sq=[0.0] * 300), TypeError, "must be a dense floating-point tensor"),
    "moments_without_data": (
        entry(exp_avg_sq=torch.zeros(300, device="meta")),
        (ValueError, TypeError),
        f"'exp_avg_sq' of {NAMED}.*meta",
    ),
    "bad_lr": (group(lr=-1.0), ValueError, "lr = -1.0: must be finite and at least 0"),
    "bad_beta": (group(betas=(0.9, 1.0)), ValueError, r"betas\[1\] = 1.0: must be in \[0, 1\)"),
    "bad_eps": (group(eps=float("nan")), ValueError, "eps = nan"),
    "bad_rectification": (group(rectification="second"), ValueError, "rectification = 'second'"),
    "bad_kind": (group(weight_decay="0.1"), TypeError, "weight_decay = '0.1': must be a number"),
    "differentiable": (group(differentiable=True), ValueError, "differentiable = True in param_groups"),
}


@both_ways
@pytest.mark.parametrize("steps", [0, 6], ids=["before_the_first_step", "after_6_steps"])
@pytest.mark.parametrize(("spoil", "error", "message"), MISFITS.values(), ids=MISFITS)
def test_misfit_raises_and_changes_nothing(
    spoil: Callable, error: type[Exception], message: str, steps: int, flatten: bool
) -> None:
    """State, groups and the bits of the next steps are those of an optimizer that was never asked."""
    source = FusedRAdam(grouped(parameters()), lr=0.5)
    train(source, range(40, 48))
    state_dict = copy.deepcopy(source.state_dict())
    spoil(state_dict)

    opt, untouched = (FusedRAdam(grouped(parameters()), flatten=flatten) for _ in range(2))
    for each in (opt, untouched):
        train(each, range(steps))
    entries = {id(p): (id(s), [*map(id, s.values())]) for p, s in opt.state.items()}
    with pytest.raises(error, match=message):
        opt.load_state_dict(state_dict)
    assert {id(p): (id(s), [*map(id, s.values())]) for p, s in opt.state.items()} == entries
    assert same(opt, untouched)
    assert opt.state_dict()["param_groups"] == untouched.state_dict()["param_groups"]
    for each in (opt, untouched):
        train(each, range(steps, steps + 3))
    assert same(opt, untouched)


def test_the_state_dict_of_the_misfits_fits_unspoilt() -> None:
    """The negative control of the test above."""
    source, opt, untouched = (FusedRAdam(grouped(parameters())) for _ in range(3))
    train(source, range(40, 48))
    opt.load_state_dict(copy.deepcopy(source.state_dict()))
    for each in (opt, untouched):
        train(each, range(1))
    assert not same(opt, untouched)


def test_state_dict_given_is_left_as_it_was() -> None:
    opt = FusedRAdam(grouped(parameters()))
    train(opt, range(6))
    state_dict = copy.deepcopy(opt.state_dict())
    kept = copy.deepcopy(state_dict)
    opt.load_state_dict(state_dict)
    train(opt, range(6, 9))
    assert state_dict["param_groups"] == kept["param_groups"]
    assert state_dict["state"].keys() == kept["state"].keys()
    assert all(same_state(state_dict["state"][key], kept["state"][key]) for key in kept["state"])


@pytest.mark.parametrize("given", [3, None, [1, 2]], ids=repr)
def test_what_is_no_state_dict_is_refused_by_value(given: object) -> None:
    opt = FusedRAdam([torch.nn.Parameter(torch.ones(3))])
    with pytest.raises(TypeError, match=f"state_dict = {re.escape(repr(given))}: must be a dict"):
        opt.load_state_dict(given)  # type: ignore[arg-type]
