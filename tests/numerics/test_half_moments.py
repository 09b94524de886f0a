"""Moments in float16: steps like those of float32 for gradients of every size, and checkpoints of the earlier form."""

from __future__ import annotations

import copy
import ctypes
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam
from radam_fused.backends.ops import OPERATORS
from radam_fused.numerics import philox, quantization
from radam_fused.numerics.scalars import compute_scalars
from radam_fused.options import GROUP_DEFAULTS
from tests.support.cuda_host import Geometry, host_step
from tests.support.helpers import same_bits
from tests.support.state_formats import Case, Format

LEVELS = (1e-9, 1e-8, 5e-8, 1e-7, 3e-7, 1e-6, 1e-3, 1.0, 1e3)
NEAREST = 0x8000


def gradients(level: float, count: int, length: int = 4096) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [level * torch.randn(length, generator=generator) for _ in range(count)]


def steps(opt: FusedRAdam, p: nn.Parameter, grads: list[Tensor], spoil: Any = None) -> Tensor:
    """By how much each step has moved the parameter, in units of lr."""
    moved = []
    for g in grads:
        p.data.zero_()
        p.grad = g
        opt.step()
        moved.append(p.detach() / -opt.param_groups[0]["lr"])
        if spoil is not None:
            spoil(opt.state[p])
    return torch.stack(moved)


def run(level: float, beta2: float, spoil: Any = None, **options: Any) -> Tensor:
    """The steps of Adam, rectified from the first on, while gradients are of one size."""
    p = nn.Parameter(torch.zeros(4096))
    opt = FusedRAdam([p], lr=1e-3, betas=(0.9, beta2), rectification="none", backend="cpu", **options)
    return steps(opt, p, gradients(level, 400), spoil)


def as_earlier(state: dict[str, Tensor]) -> None:
    """Rounds float32 moments as float16 moments were first stored: m, and the root of v."""
    m, v = state["exp_avg"], state["exp_avg_sq"]
    draw = torch.randint(2**16, m.shape, generator=torch.Generator().manual_seed(int(state["step"])))
    m.copy_(quantization.round_stochastic(m, philox.swap_bytes(draw), torch.float16))
    v.copy_(quantization.round_stochastic(v.sqrt(), draw, torch.float16).float().square())


@pytest.mark.parametrize("beta2", [0.999, 0.9999])
@pytest.mark.parametrize("level", LEVELS)
def test_steps_are_float32_s(level: float, beta2: float) -> None:
    half, single = run(level, beta2, state_dtype=torch.float16), run(level, beta2)
    late = slice(200, None)
    assert half[late].norm() == pytest.approx(float(single[late].norm()), rel=0.01)
    assert half[50:].abs().max() < 1.1 * single[50:].abs().max()
    assert torch.cosine_similarity(half[late].flatten(), single[late].flatten(), 0) > 0.999


@pytest.mark.parametrize("level", [5e-8, 1e-7, 3e-7])
def test_the_earlier_form_lengthened_steps(level: float) -> None:
    """The negative control: a root of 0 left eps alone to divide by."""
    earlier, single = run(level, 0.999, as_earlier), run(level, 0.999)
    assert earlier[50:].abs().max() > 2 * single[50:].abs().max()
    assert torch.cosine_similarity(earlier[200:].flatten(), single[200:].flatten(), 0) < 0.9


def test_every_fourth_root_there_and_back() -> None:
    """Whatever is drawn, and also those of subnormal float16."""
    halves = torch.arange(0x7C01).to(torch.int16).view(torch.float16)
    for draw in (0, NEAREST, 0xFFFF):
        drawn = torch.full(halves.shape, draw)
        assert same_bits(quantization.encode_half_root(quantization.decode_half_root(halves), drawn), halves)


def test_a_root_above_zero_is_stored_above_zero() -> None:
    roots = torch.tensor([0.0, 2.0**-149, 1e-30, 1e-15, 3.5e-15, 3.6e-15, 1.0, math.inf, math.nan])
    for draw in (0, NEAREST, 0xFFFF):
        found = quantization.decode_half_root(quantization.encode_half_root(roots, torch.full(roots.shape, draw)))
        assert found[0] == 0.0
        assert found[1:5].tolist() == [2.0**-48] * 4
        assert (found[1:5] >= roots[1:5]).all()
        assert found[7] == math.inf
        assert found[8].isnan()


def test_a_quotient_is_finite_unless_the_moment_is_not() -> None:
    root = torch.full((6,), 2.0**-48)
    m = torch.tensor([1.0, -1.0, 65504 * 2.0**-48, math.inf, -math.inf, math.nan])
    found = quantization.encode_half_first(m, root, torch.full((6,), 0xFFFF))
    assert found[:5].tolist() == [65504.0, -65504.0, 65504.0, math.inf, -math.inf]
    assert found[5].isnan()
    assert quantization.encode_half_first(m[:3], root[:3] * 0, torch.zeros(3, dtype=torch.int64)).tolist() == [0.0] * 3


class Stopping(Case):
    """Gradients that stop, under a second moment that fades faster than the first: m / sqrt(v) grows without end."""

    def rows(self, t: int) -> Tensor:
        group = {**GROUP_DEFAULTS, "betas": (0.9, 0.5), "rectification": "none"}
        return torch.tensor([compute_scalars(group, t)] * 6, dtype=torch.float64)

    def stop(self, step: Any, count: int = 60) -> list[Tensor]:
        for t in range(1, count + 1):
            grads = [torch.ones_like(p, dtype=torch.float32) * (t < 4) for p in self.params]
            buffers = self.exp_avg, self.exp_avg_sq, self.segments, self.scalar_index, self.rows(t)
            step(self.params, grads, *buffers, False, self.scales, self.master, self.form.stochastic, self.rng_offsets)
        return self.bits()


def test_a_quotient_that_grows_stays_finite_in_every_backend(host_kernels: ctypes.CDLL) -> None:
    form = Format(torch.float32, torch.float32, torch.float16)
    cases = [Stopping(form, ["size_257", "strided"]) for _ in range(4)]
    runs = [
        *(OPERATORS[name].step for name in ("reference", "cpu", "triton")),
        host_step(host_kernels, Geometry(blocks=2)),
    ]
    found = [case.stop(step) for case, step in zip(cases, runs, strict=True)]
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))
    assert all(p.isfinite().all() for p in cases[0].params)
    assert cases[0].exp_avg.isfinite().all()
    assert cases[0].exp_avg.max() == 65504.0  # the negative control: it has come to the largest number


# Checkpoints of the earlier form.


def trained(count: int = 8, **options: Any) -> tuple[list[nn.Parameter], FusedRAdam]:
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((130, 40), (7,), ())]
    opt = FusedRAdam(params, lr=0.01, backend="cpu", **options)
    for _ in range(count):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        opt.step()
    return params, opt


def earlier_state_dict(opt: FusedRAdam) -> dict[str, Any]:
    """As version 0.1.0's successors wrote it: m and the root of v in float16."""
    saved = copy.deepcopy(opt.state_dict())
    for entry in saved["state"].values():
        entry["root_exp_avg_sq"] = entry.pop("exp_avg_sq").sqrt().half()
        entry["exp_avg"] = entry["exp_avg"].half()
    return saved


@pytest.mark.parametrize("state", [torch.float16, torch.float32, torch.bfloat16, torch.int8])
def test_earlier_checkpoints_load(state: torch.dtype) -> None:
    params, opt = trained()
    saved = earlier_state_dict(opt)
    saved["state"][0]["root_exp_avg_sq"][0] = 0.0  # with a first moment that is not: rounded to 0 at the time
    loaded = FusedRAdam([nn.Parameter(p.detach().clone()) for p in params], state_dtype=state, backend="cpu")
    loaded.load_state_dict(saved)
    back = FusedRAdam([nn.Parameter(p.detach().clone()) for p in params], backend="cpu")
    back.load_state_dict(loaded.state_dict())
    for (p, q), entry in zip(
        zip(params, back.param_groups[0]["params"], strict=True), saved["state"].values(), strict=True
    ):
        rest = slice(1, None) if p.dim() > 1 else ...
        m, v = back.state[q]["exp_avg"], back.state[q]["exp_avg_sq"]
        tolerance = 0.02 if state == torch.int8 else 0.004
        assert (m[rest] - opt.state[p]["exp_avg"][rest]).norm() <= tolerance * opt.state[p]["exp_avg"].norm()
        assert (v[rest] - opt.state[p]["exp_avg_sq"][rest]).norm() <= tolerance * opt.state[p]["exp_avg_sq"].norm()
        assert back.state[q]["step"] == entry["step"] == 8
    assert not back.state[back.param_groups[0]["params"][0]]["exp_avg_sq"][0].any()


def test_what_is_written_has_names_of_its_own() -> None:
    """So old and new have different names, and neither is mistaken for the other."""
    params, opt = trained(state_dtype=torch.float16)
    names = set(opt.state_dict()["state"][0])
    assert names == {"step", "exp_avg_ratio", "fourth_root_exp_avg_sq"}
    _, single = trained()
    m, v = (single.state[single.param_groups[0]["params"][0]][name] for name in ("exp_avg", "exp_avg_sq"))
    entry = opt.state[params[0]]
    torch.testing.assert_close(entry["fourth_root_exp_avg_sq"].float() ** 4, v, rtol=0.02, atol=0.0)
    torch.testing.assert_close(entry["exp_avg_ratio"].float(), m / v.sqrt(), rtol=0.02, atol=0.01)
    misnamed = copy.deepcopy(opt.state_dict())
    misnamed["state"][0]["root_exp_avg_sq"] = misnamed["state"][0].pop("fourth_root_exp_avg_sq")
    misnamed["state"][0]["exp_avg"] = misnamed["state"][0].pop("exp_avg_ratio")
    again = FusedRAdam([nn.Parameter(p.detach().clone()) for p in params], state_dtype=torch.float16, backend="cpu")
    again.load_state_dict(misnamed)  # the negative control: under the earlier names the same numbers are others
    assert not same_bits(again.state[again.param_groups[0]["params"][0]]["exp_avg_ratio"], entry["exp_avg_ratio"])
