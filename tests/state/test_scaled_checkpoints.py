"""Checkpoints of training with scaling, clipping and cleared gradients, in torch.optim.RAdam and back."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
from torch import nn

from radam_fused import FusedRAdam
from tests.support.helpers import all_same_bits
from tests.support.training_steps import TOLERANCE, Amp, both_ways, contents, deviation, native, small, train

pytestmark = pytest.mark.filterwarnings("ignore:grad and param do not obey the gradient layout")  # on purpose


@pytest.mark.parametrize("after", [False, True], ids=["to_eager", "to_capturable"])
@pytest.mark.parametrize("before", [False, True], ids=["eager", "capturable"])
@both_ways
@native
def test_checkpoint_goes_on_with_the_same_bits(name: str, flatten: bool, before: bool, after: bool) -> None:
    make = functools.partial(FusedRAdam, lr=0.1, backend=name, flatten=flatten)
    opt, whole = make(small(), capturable=before), make(small())
    train(whole, range(9))
    train(opt, range(5))
    state_dict = copy.deepcopy(opt.state_dict())
    assert all(
        entry["step"].dtype == torch.float32 and entry["step"].shape == () for entry in state_dict["state"].values()
    )
    params = [nn.Parameter(p.detach().clone()) for p in opt.param_groups[0]["params"]]
    state_dict["param_groups"][0]["capturable"] = after
    resumed = make(params)
    resumed.load_state_dict(state_dict)
    train(resumed, range(5, 9))
    assert resumed.param_groups[0]["capturable"] == after
    assert all_same_bits(contents(resumed), contents(whole))


@pytest.mark.parametrize("capturable", [False, True], ids=["eager", "capturable"])
def test_torch_goes_on_from_our_checkpoint(capturable: bool) -> None:
    opt, whole = FusedRAdam(small(), lr=0.1, capturable=capturable), torch.optim.RAdam(small(), lr=0.1)
    train(opt, range(5))
    train(whole, range(9))
    theirs = torch.optim.RAdam([nn.Parameter(p.detach().clone()) for p in opt.param_groups[0]["params"]])
    theirs.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert theirs.param_groups[0]["capturable"] == capturable
    theirs.param_groups[0]["capturable"] = False  # torch refuses it on the CPU
    train(theirs, range(5, 9))
    assert all(deviation(a, b) < 10 * TOLERANCE for a, b in zip(contents(theirs), contents(whole), strict=True))


def test_checkpoint_after_a_skipped_first_step() -> None:
    """A count of 0 loads, here and in torch."""
    amp = Amp(opt := FusedRAdam(small(), lr=0.1))
    amp.backward(0)
    amp.params[0].grad.fill_(math.inf)
    amp.step()
    for resumed in (FusedRAdam(small(), lr=0.1), torch.optim.RAdam(small(), lr=0.1)):
        resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
        fresh = torch.optim.RAdam(small(), lr=0.1)
        for each in (resumed, fresh):
            train(each, range(8))
        assert all(deviation(a, b) < 10 * TOLERANCE for a, b in zip(contents(resumed), contents(fresh), strict=True))
