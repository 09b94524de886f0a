"""state_dicts: of this optimizer and of torch.optim.RAdam, in both directions, whole or not at all."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from radam_fused import FusedRAdam
from tests.support.checkpoints import (
    as_it_was,
    both_ways,
    grouped,
    parameters,
    same,
    same_state,
    through_a_file,
    train,
    worst,
)
from tests.support.helpers import params_of, same_bits

WHEN = pytest.mark.parametrize("when", [1, 5, 6, 20], ids=lambda n: f"after_{n}")
"""Steps before the checkpoint: RAdam rectifies from the sixth on."""


@WHEN
@both_ways
@pytest.mark.parametrize("carry", [copy.deepcopy, through_a_file], ids=["deepcopy", "file"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
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
        assert not same_bits(params_of(opt)[3], params_of(resumed)[3])


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
    saved, loaded = (o.state[params_of(o)[0]]["exp_avg"] for o in (opt, resumed))
    assert loaded.dtype == torch.float32
    assert same_bits(saved, loaded)
    assert not same_bits(saved, saved.to(dtype).float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_16_bit_moments_of_torch_are_widened(dtype: torch.dtype) -> None:
    theirs = torch.optim.RAdam(grouped(parameters(dtype)), eps=1e-3)
    train(theirs, range(3))
    ours = FusedRAdam(grouped(as_it_was(theirs)))
    ours.load_state_dict(theirs.state_dict())
    p, q = params_of(ours)[0], params_of(theirs)[0]
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
