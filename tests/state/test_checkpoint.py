"""state_dicts: of this optimizer and of torch.optim.RAdam, in both directions, whole or not at all."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from radam_fused import FusedRAdam
from tests.support.helpers import same_bits

WHEN = pytest.mark.parametrize("when", [1, 5, 6, 20], ids=lambda n: f"after_{n}")
"""Steps before the checkpoint: RAdam rectifies from the sixth on."""
both_ways = pytest.mark.parametrize("flatten", [False, True], ids=["apart", "flatten"])

SHAPES = [(7, 5), (), (0,), (300,), (3, 4)]
GROUPS = [{"lr": 0.02, "betas": (0.8, 0.99)}, {"weight_decay": 0.1}]


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(5)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in SHAPES]


def grouped(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": params[:2], **GROUPS[0]}, {"params": params[2:], **GROUPS[1]}]


def train(opt: torch.optim.Optimizer, steps: range) -> None:
    for t in steps:
        generator = torch.Generator().manual_seed(t)
        for group in opt.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        opt.step()


def all_of(opt: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in opt.param_groups for p in group["params"]]


def same(a: torch.optim.Optimizer, b: torch.optim.Optimizer) -> bool:
    """Whether parameters and states are equal bit for bit."""
    pairs = list(zip(all_of(a), all_of(b), strict=True))
    return all(same_bits(p, q) and same_state(a.state.get(p, {}), b.state.get(q, {})) for p, q in pairs)


def same_state(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(same_bits(a[key], b[key]) for key in a)


def worst(a: torch.optim.Optimizer, b: torch.optim.Optimizer) -> float:
    return max((p - q).abs().max().item() for p, q in zip(all_of(a), all_of(b), strict=True) if p.numel())


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def as_it_was(opt: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().clone()) for p in all_of(opt)]


# Round trips.


@WHEN
@both_ways
@pytest.mark.parametrize("carry", [copy.deepcopy, through_a_file], ids=["deepcopy", "file"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_own_to_own_is_bit_for_bit(dtype: torch.dtype, carry: Callable, flatten: bool, when: int) -> None:
    opt = FusedRAdam(grouped(parameters(dtype)), flatten=flatten)
    train(opt, range(when))
    resumed = FusedRAdam(grouped(as_it_was(opt)), lr=123.0, flatten=flatten)
    resumed.load_state_dict(carry(opt.state_dict()))
    assert same(opt, resumed)
    for each in (opt, resumed):
        train(each, range(when, when + 8))
    assert same(opt, resumed)


def test_forgotten_checkpoint_is_noticed() -> None:
    """The negative control of the test above, for the moments and for the step counts alone."""
    for spoil in (lambda s: s["exp_avg"].zero_(), lambda s: s["step"].add_(1)):
        opt = FusedRAdam(grouped(parameters()))
        train(opt, range(6))
        resumed = FusedRAdam(grouped(as_it_was(opt)))
        state_dict = copy.deepcopy(opt.state_dict())
        spoil(state_dict["state"][3])
        resumed.load_state_dict(state_dict)
        for each in (opt, resumed):
            train(each, range(6, 8))
        assert not same_bits(all_of(opt)[3], all_of(resumed)[3])


@both_ways
def test_between_the_layouts_and_backends(flatten: bool) -> None:
    """A checkpoint knows nothing of flatten or of the backend."""
    opt = FusedRAdam(grouped(parameters()), backend="cpu", flatten=flatten)
    train(opt, range(6))
    resumed = FusedRAdam(grouped(as_it_was(opt)), backend="reference", flatten=not flatten)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    for each in (opt, resumed):
        train(each, range(6, 12))
    assert same(opt, resumed)


@WHEN
@both_ways
@pytest.mark.parametrize("foreach", [False, True], ids=["for-loop", "foreach"])
def test_from_torch(foreach: bool, flatten: bool, when: int) -> None:
    theirs = torch.optim.RAdam(grouped(parameters()), foreach=foreach)
    train(theirs, range(when))
    ours = FusedRAdam(grouped(as_it_was(theirs)), flatten=flatten)
    ours.load_state_dict(through_a_file(theirs.state_dict()))
    assert same(ours, theirs)
    for each in (theirs, ours):
        train(each, range(when, when + 12))
    assert worst(ours, theirs) < 2e-6
    assert ours.param_groups[0]["rho_threshold"] == 5.0


@WHEN
@both_ways
@pytest.mark.parametrize("foreach", [False, True], ids=["for-loop", "foreach"])
def test_into_torch(foreach: bool, flatten: bool, when: int) -> None:
    ours = FusedRAdam(grouped(parameters()), foreach=foreach, flatten=flatten)
    train(ours, range(when))
    theirs = torch.optim.RAdam(grouped(as_it_was(ours)))
    theirs.load_state_dict(through_a_file(ours.state_dict()))
    assert same(ours, theirs)
    for each in (theirs, ours):
        train(each, range(when, when + 12))
    assert worst(ours, theirs) < 2e-6


def test_into_torch_without_loading_is_noticed() -> None:
    """The negative control of the two tests above."""
    ours = FusedRAdam(grouped(parameters()))
    train(ours, range(6))
    theirs = torch.optim.RAdam(grouped(as_it_was(ours)))
    for each in (theirs, ours):
        train(each, range(6, 18))
    assert worst(ours, theirs) > 1e-4


def test_there_and_back_is_bit_for_bit() -> None:
    """Ours, through torch's, and on with ours."""
    ours = FusedRAdam(grouped(parameters()))
    train(ours, range(6))
    theirs = torch.optim.RAdam(grouped(as_it_was(ours)))
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    resumed = FusedRAdam(grouped(as_it_was(ours)))
    resumed.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for each in (ours, resumed):
        train(each, range(6, 12))
    assert same(ours, resumed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@both_ways
def test_moments_of_16_bit_parameters_stay_exact(dtype: torch.dtype, flatten: bool) -> None:
    """torch's own load_state_dict would round them to the parameter's dtype."""
    opt = FusedRAdam(grouped(parameters(dtype)), flatten=flatten)
    train(opt, range(7))
    resumed = FusedRAdam(grouped(as_it_was(opt)), flatten=flatten)
    resumed.load_state_dict(opt.state_dict())
    saved, loaded = (o.state[all_of(o)[0]]["exp_avg"] for o in (opt, resumed))
    assert loaded.dtype == torch.float32
    assert same_bits(saved, loaded)
    assert not same_bits(saved, saved.to(dtype).float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_16_bit_moments_of_torch_are_widened(dtype: torch.dtype) -> None:
    theirs = torch.optim.RAdam(grouped(parameters(dtype)), eps=1e-3)
    train(theirs, range(3))
    ours = FusedRAdam(grouped(as_it_was(theirs)))
    ours.load_state_dict(theirs.state_dict())
    p, q = all_of(ours)[0], all_of(theirs)[0]
    assert theirs.state[q]["exp_avg"].dtype == dtype
    assert same_bits(ours.state[p]["exp_avg"], theirs.state[q]["exp_avg"].float())


@both_ways
def test_loading_does_not_tie_two_optimizers(flatten: bool) -> None:
    """One that loads another's live state_dict takes copies."""
    opt = FusedRAdam(grouped(parameters()), flatten=flatten)
    train(opt, range(6))
    resumed = FusedRAdam(grouped(as_it_was(opt)), flatten=flatten)
    resumed.load_state_dict(opt.state_dict())
    before = copy.deepcopy(opt.state_dict()["state"])
    train(resumed, range(6, 9))
    assert all(same_state(before[key], entry) for key, entry in opt.state_dict()["state"].items())


# What older and other writers leave out.


@pytest.mark.parametrize(
    "missing",
    ["maximize", "foreach", "capturable", "differentiable", "decoupled_weight_decay", "rho_threshold", "rectification"],
)
def test_group_without_a_key_gets_its_default(missing: str) -> None:
    theirs = torch.optim.RAdam(grouped(parameters()))
    train(theirs, range(6))
    state_dict = copy.deepcopy(theirs.state_dict())
    for group in state_dict["param_groups"]:
        group.pop(missing, None)
    ours = FusedRAdam(grouped(as_it_was(theirs)))
    ours.load_state_dict(state_dict)
    assert missing in ours.param_groups[1]
    for each in (theirs, ours):
        train(each, range(6, 12))
    assert worst(ours, theirs) < 2e-6


@pytest.mark.parametrize(
    "kind", [int, float, torch.tensor, lambda n: torch.tensor([n])], ids=["int", "float", "0-d", "1-d"]
)
@both_ways
def test_step_as_a_number(kind: Callable, flatten: bool) -> None:
    """Old checkpoints of torch hold it so."""
    opt = FusedRAdam(grouped(parameters()), flatten=flatten)
    train(opt, range(6))
    state_dict = copy.deepcopy(opt.state_dict())
    for entry in state_dict["state"].values():
        entry["step"] = kind(6)
    resumed = FusedRAdam(grouped(as_it_was(opt)), flatten=flatten)
    resumed.load_state_dict(state_dict)
    assert same(opt, resumed)
    for each in (opt, resumed):
        train(each, range(6, 9))
    assert same(opt, resumed)


# When it is loaded.


@both_ways
@pytest.mark.parametrize("before", [0, 3], ids=["before_the_first_step", "after_3_steps"])
def test_loaded_over_other_state(before: int, flatten: bool) -> None:
    opt = FusedRAdam(grouped(parameters()), flatten=flatten)
    train(opt, range(6))
    resumed = FusedRAdam(grouped(parameters()), flatten=flatten)
    train(resumed, range(100, 100 + before))
    for p, q in zip(all_of(resumed), all_of(opt), strict=True):
        p.detach().copy_(q.detach())
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    for each in (opt, resumed):
        train(each, range(6, 9))
    assert same(opt, resumed)


@both_ways
def test_empty_state_takes_the_optimizer_back_to_the_start(flatten: bool) -> None:
    opt, fresh = (FusedRAdam(grouped(parameters()), flatten=flatten) for _ in range(2))
    start = copy.deepcopy(opt.state_dict())
    train(opt, range(6))
    opt.load_state_dict(start)
    assert [float(entry["step"]) for entry in opt.state.values()] == [0.0] * (len(all_of(opt)) if flatten else 0)
    for p, q in zip(all_of(opt), all_of(fresh), strict=True):
        p.detach().copy_(q.detach())
        q.grad = None
    for each in (opt, fresh):
        train(each, range(6))
    assert same(opt, fresh)


@both_ways
def test_state_of_some_parameters_only(flatten: bool) -> None:
    """Those that had no gradient before the checkpoint start at step 1 after it."""
    opts = []
    for resume in (False, True):
        params = parameters()
        opt = FusedRAdam(grouped(params), flatten=flatten)
        for t in range(12):
            if resume and t == 6:
                state_dict = through_a_file(opt.state_dict())
                assert [key for key, entry in state_dict["state"].items() if entry["step"] > 0] == [0, 3]
                opt = FusedRAdam(grouped(as_it_was(opt)), flatten=flatten)
                opt.load_state_dict(state_dict)
                params = all_of(opt)
            generator = torch.Generator().manual_seed(t)
            for i, p in enumerate(params):
                p.grad = torch.randn(p.shape, generator=generator) if i in (0, 3) or t >= 8 else None
            opt.step()
        opts.append(opt)
    assert same(*opts)


@both_ways
def test_scheduler_and_optimizer_resume_together(flatten: bool) -> None:
    def make(params: list[nn.Parameter]) -> tuple[FusedRAdam, torch.optim.lr_scheduler.LRScheduler]:
        opt = FusedRAdam(params, lr=0.1, flatten=flatten)
        return opt, torch.optim.lr_scheduler.CosineAnnealingLR(opt, 20)

    def run(opt: FusedRAdam, scheduler: Any, steps: range) -> None:
        for t in steps:
            train(opt, range(t, t + 1))
            scheduler.step()

    opt, scheduler = make(parameters())
    run(opt, scheduler, range(7))
    resumed, resumed_scheduler = make(as_it_was(opt))
    resumed_scheduler.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    resumed.load_state_dict(through_a_file(opt.state_dict()))
    run(opt, scheduler, range(7, 14))
    run(resumed, resumed_scheduler, range(7, 14))
    assert same(opt, resumed)
    assert resumed.param_groups[0]["lr"] == opt.param_groups[0]["lr"] < 0.05


# state_dicts that do not fit.


def entry(**values: Any) -> Callable[[dict], None]:
    """Puts these into the state of parameter 3, which lies in the second group; `...` removes."""

    def spoil(state_dict: dict) -> None:
        for key, value in values.items():
            if value is ...:
                del state_dict["state"][3][key]
            else:
                state_dict["state"][3][key] = value

    return spoil


def group(**values: Any) -> Callable[[dict], None]:
    def spoil(state_dict: dict) -> None:
        state_dict["param_groups"][1].update(values)

    return spoil


NAMED = r"param_groups\[1\]\['params'\]\[1\]"

MISFITS: dict[str, tuple[Callable[[dict], Any], type[Exception] | tuple[type[Exception], ...], str]] = {
    "no_state": (lambda s: s.pop("state"), ValueError, "has no 'state'"),
    "no_param_groups": (lambda s: s.pop("param_groups"), ValueError, "has no 'param_groups'"),
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
