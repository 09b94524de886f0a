"""Checkpoints of low-precision state: exact, converted from other formats, and whole or refused."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

from radam_fused import FusedRAdam
from tests.support.low_precision import OPTIONS, equal, parameters, train, values


@pytest.mark.parametrize("options", OPTIONS)
def test_checkpoint_is_exact(options: dict) -> None:
    """Saved, loaded and gone on with: the same bits as never interrupted."""
    params = parameters()
    opt = FusedRAdam(params, lr=0.01, seed=5, **options)
    train(opt, params, 0, 7)
    file = io.BytesIO()
    torch.save((opt.state_dict(), [p.detach() for p in params]), file)
    train(opt, params, 7, 12)

    file.seek(0)
    saved, weights = torch.load(file)
    resumed = parameters(seed=1)
    for p, weight in zip(resumed, weights, strict=True):
        p.data = weight
    again = FusedRAdam(resumed, lr=0.5, **options)
    again.load_state_dict(saved)
    assert again.param_groups[0]["seed"] == 5
    train(again, resumed, 7, 12)
    assert equal(values(opt, params), values(again, resumed))


@pytest.mark.parametrize("after", OPTIONS[::3])
@pytest.mark.parametrize("before", OPTIONS[1::4])
def test_checkpoint_of_another_form_is_converted(before: dict, after: dict) -> None:
    params = parameters()
    opt = FusedRAdam(params, lr=0.01, **before)
    train(opt, params, 0, 8)
    copies = [copy.deepcopy(p) for p in params]
    loaded = FusedRAdam(copies, lr=0.01, **after)
    loaded.load_state_dict(opt.state_dict())
    fresh = parameters()
    made = FusedRAdam(fresh, **after)
    train(made, fresh, 0, 1)
    assert [loaded.state[p].keys() for p in copies] == [made.state[p].keys() for p in fresh]
    plain = FusedRAdam([copy.deepcopy(p) for p in params], lr=0.01)
    plain.load_state_dict(loaded.state_dict())
    whole = FusedRAdam([copy.deepcopy(p) for p in params], lr=0.01)
    whole.load_state_dict(opt.state_dict())
    for p, q in zip(plain.param_groups[0]["params"], whole.param_groups[0]["params"], strict=True):
        for name, tolerance in (("exp_avg", 0.02), ("exp_avg_sq", 0.05)):
            ours, theirs = plain.state[p][name], whole.state[q][name]
            assert (ours - theirs).norm() <= tolerance * theirs.norm()
    train(loaded, copies, 8, 10)
    assert all(p.isfinite().all() for p in copies)


@pytest.mark.parametrize("options", OPTIONS[1::3])
def test_torch_optim_checkpoints_are_converted(options: dict) -> None:
    params = [nn.Parameter(p.detach().float()) for p in parameters()]
    theirs = torch.optim.RAdam(params, lr=0.01)
    for t in range(7):
        for p in params:
            p.grad = torch.full_like(p, 0.1 * (t + 1))
        theirs.step()
    ours = FusedRAdam([nn.Parameter(p.detach().bfloat16()) for p in params], lr=0.01, **options)
    ours.load_state_dict(theirs.state_dict())
    back = FusedRAdam(params, lr=0.01)
    back.load_state_dict(ours.state_dict())
    for p in params:
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(back.state[p][name], theirs.state[p][name], rtol=0.02, atol=0)


def cast_codes(saved: dict) -> None:
    saved["state"][0]["exp_avg_octave_code"] = saved["state"][0]["exp_avg_octave_code"].bfloat16()


def cut_scales(saved: dict) -> None:
    saved["state"][0]["exp_avg_scale"] = saved["state"][0]["exp_avg_scale"][:-1]


def cast_master(saved: dict) -> None:
    saved["state"][0]["master_low"] = saved["state"][0]["master_low"].float()


def drop_second(saved: dict) -> None:
    del saved["state"][1]["exp_avg_sq_scale"]


BROKEN = {
    "codes_cast": (cast_codes, TypeError, "'exp_avg_octave_code' of .*0.* must be a dense torch.int8 tensor"),
    "scales_cut": (cut_scales, ValueError, r"'exp_avg_scale' of .* has shape \(32,\): must be \(33,\)"),
    "master_cast": (cast_master, TypeError, "'master_low' of .* must be a dense torch.int16 tensor"),
    "scale_missing": (drop_second, ValueError, "has no 'exp_avg'; it holds"),
}


@pytest.mark.parametrize(("spoil", "error", "message"), BROKEN.values(), ids=list(BROKEN))
def test_a_broken_checkpoint_changes_nothing(spoil: Any, error: type[Exception], message: str) -> None:
    options = {"state_dtype": torch.int8, "master_weights": "split"}
    params = parameters()
    opt = FusedRAdam(params, **options)
    train(opt, params, 0, 3)
    saved = copy.deepcopy(opt.state_dict())
    spoil(saved)
    before = values(opt, params)
    with pytest.raises(error, match=message):
        opt.load_state_dict(saved)
    assert equal(before, values(opt, params))
