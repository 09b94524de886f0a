"""8-bit moments of earlier versions, in codes linear in the root's own square root: loaded, and never written."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam
from tests.support.helpers import same_bits

SAVED = Path(__file__).with_name("old_int8_state.pt")
"""An optimizer's state_dict after 8 steps of two parameters, the second transposed, as version 0.1 wrote it."""
CODES, OLD = ("exp_avg_octave_code", "exp_avg_sq_octave_code"), ("exp_avg_code", "exp_avg_sq_code")


@pytest.fixture
def saved() -> dict[str, Any]:
    return torch.load(SAVED)


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(65, 67)), nn.Parameter(torch.zeros(72, 64).t())]


def loaded(saved: dict[str, Any], state_dtype: torch.dtype) -> FusedRAdam:
    opt = FusedRAdam(parameters(), lr=0.01, state_dtype=state_dtype, backend="reference")
    opt.load_state_dict(saved)
    return opt


def in_memory_order(tensor: Tensor) -> Tensor:
    return tensor.as_strided((tensor.numel(),), (1,))


def moments(entry: dict[str, Tensor]) -> list[Tensor]:
    """m and v of an entry in the old codes, in memory order, by their formulas."""
    m, v = (in_memory_order(entry[name]).double() for name in OLD)
    scale, sq_scale = (
        entry[name].double().repeat_interleave(256)[: len(m)] for name in ("exp_avg_scale", "exp_avg_sq_scale")
    )
    root = sq_scale * (v / 255) ** 2
    return [m / 127 * scale * root, root**2]


def test_it_is_decoded_by_the_old_formulas(saved: dict[str, Any]) -> None:
    opt = loaded(saved, torch.float32)
    for p, entry in zip(opt.param_groups[0]["params"], saved["state"].values(), strict=True):
        assert opt.state[p]["step"] == 8
        for name, expected in zip(("exp_avg", "exp_avg_sq"), moments(entry), strict=True):
            found = in_memory_order(opt.state[p][name]).double()
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-30)
            assert found.norm() > 0


def test_it_goes_into_the_codes_of_now(saved: dict[str, Any]) -> None:
    """The same ones that its float32 values would get, and near those values; then training goes on."""
    opt, plain = loaded(saved, torch.int8), loaded(saved, torch.float32)
    again = loaded(plain.state_dict(), torch.int8)
    back = loaded(opt.state_dict(), torch.float32)
    for k, p in enumerate(opt.param_groups[0]["params"]):
        entry = opt.state[p]
        assert set(CODES) < set(entry)
        assert not set(OLD) & set(entry)
        theirs = again.state[again.param_groups[0]["params"][k]]
        assert all(same_bits(entry[name], theirs[name]) for name in entry)
        exact, near = (one.state[one.param_groups[0]["params"][k]] for one in (plain, back))
        for name in ("exp_avg", "exp_avg_sq"):
            assert (near[name] - exact[name]).norm() < 0.02 * exact[name].norm()
        p.grad = torch.ones_like(p)
    opt.step()
    assert all(p.isfinite().all() and p.count_nonzero() for p in opt.param_groups[0]["params"])


@pytest.mark.parametrize("name", [*OLD, "exp_avg_scale", "exp_avg_sq_scale"])
def test_a_part_of_it_is_refused(name: str, saved: dict[str, Any]) -> None:
    """The negative control: the codes are recognised by all of their names, and each has its dtype and shape."""
    without = copy.deepcopy(saved)
    del without["state"][0][name]
    with pytest.raises(ValueError, match="has no"):
        loaded(without, torch.int8)
    saved["state"][0][name] = saved["state"][0][name].bfloat16()
    with pytest.raises(TypeError, match=f"'{name}' of .*0.* must be a dense"):
        loaded(saved, torch.int8)
