"""The Triton step over low-precision state, interpreted, against ``reference``, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from radam_fused.backends.ops import OPERATORS
from radam_fused.backends.triton import step as triton
from tests.support.state_formats import FORMATS, Case, Format

TRITON, REFERENCE = OPERATORS["triton"].step, OPERATORS["reference"].step
LAYOUTS = ["size_4097", "transposed", "strided", "misaligned", "0-d", "size_0"]
STEPS = 6
"""Until every group is rectified; by then one has skipped a step, and another has updated its moments only."""
STATES = {form.state: form for form in FORMATS if form.stochastic and form.param == torch.bfloat16}
"""One state format for each kind of moments."""


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full tiles, ragged ones and slices of them, all within few elements."""
    monkeypatch.setattr(triton, "INTERPRETED_TILE", 4096)
    monkeypatch.setattr(triton, "INTERPRETED_SLICE", 1024)


def differences(ours: Case, theirs: Case) -> list[str]:
    triples = zip(ours.names(), ours.bits(), theirs.bits(), strict=True)
    return [name for name, a, b in triples if not torch.equal(a, b)]


@pytest.mark.sampled(parts=True, ways=2)
@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_low_precision_equal_reference(form: Format) -> None:
    ours, theirs = Case(form, LAYOUTS), Case(form, LAYOUTS)
    ours.run(TRITON, STEPS)
    theirs.run(REFERENCE, STEPS)
    assert differences(ours, theirs) == []


class OtherSeed(Case):
    """Changes the seed of one group's random bits."""

    def rows(self, t: int) -> Tensor:
        rows = super().rows(t)
        rows[0, 10] += 1
        return rows


@pytest.mark.parametrize("form", [STATES[torch.float32], STATES[torch.bfloat16]], ids=str)
def test_another_seed_shows(form: Format) -> None:
    """The negative control: the random bits of one group, and a single bit, are in the bits that are compared."""
    ours, theirs, other = Case(form, ["size_257"]), Case(form, ["size_257"]), OtherSeed(form, ["size_257"])
    ours.run(TRITON, 2)
    theirs.run(REFERENCE, 2)
    other.run(REFERENCE, 2)
    assert differences(ours, theirs) == []
    drawn = [] if form.state == torch.float32 else ["exp_avg", "exp_avg_sq"]
    assert differences(ours, other) == ["size_257", *drawn]
    ours.exp_avg.view(torch.int16)[256 + 77] ^= 1
    assert differences(ours, theirs) == ["exp_avg"]


SPECIAL = [float("nan"), float("inf"), -float("inf"), 3e38, -1e20, 65504.0, 65520.0, 1e-7, -3e-8, 1e-38, 1e-42, 0.0]


def with_special_gradients(step: Callable[..., None]) -> Callable[..., None]:
    def special(params: list[Tensor], grads: list[Tensor], *others: object) -> None:
        grads[1][1024 : 1024 + 20 * len(SPECIAL) : 20] = torch.tensor(SPECIAL).to(grads[1].dtype)
        grads[0].mul_(1e-30)  # of moments that are subnormal or vanish
        step(params, grads, *others)

    return special


@pytest.mark.parametrize("param", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("state", STATES, ids=[str(form.state) for form in STATES.values()])
def test_special_values(state: torch.dtype, param: torch.dtype) -> None:
    form = Format(param, torch.float32, state, stochastic=True)
    ours, theirs, plain = (Case(form, ["size_257", "size_4097"]) for _ in range(3))
    ours.run(with_special_gradients(TRITON), 3)
    theirs.run(with_special_gradients(REFERENCE), 3)
    plain.run(REFERENCE, 3)
    assert differences(ours, theirs) == []
    assert ours.params[1].isnan().any()
    assert set(differences(ours, plain)) == set(ours.names())


@pytest.mark.parametrize("form", [STATES[torch.int8], FORMATS[-1]], ids=str)
def test_zeroed_gradients(form: Format) -> None:
    """Every gradient is zero after the step, also of a group that is skipped, and the step is the same."""
    zeroed, left = Case(form, LAYOUTS), Case(form, LAYOUTS)
    seen: list[Tensor] = []

    def zeroing(params: list[Tensor], grads: list[Tensor], *others: object) -> None:
        arguments = list(others)
        arguments[5] = True
        seen.extend(grads)
        TRITON(params, grads, *arguments)

    zeroed.run(zeroing, 4)
    left.run(REFERENCE, 4)
    assert differences(zeroed, left) == []
    assert len(seen) == 4 * len(LAYOUTS)
    assert not any(grad.any() for grad in seen)


def test_wide_parameters_are_not_rounded_stochastically() -> None:
    for param, state in ((torch.float32, torch.float32), (torch.float64, torch.float64)):
        asked, plain = (Case(Format(param, param, state, stochastic=on), ["size_257"]) for on in (True, False))
        asked.run(TRITON, 2)
        plain.run(REFERENCE, 2)
        assert differences(asked, plain) == []


@pytest.mark.parametrize("state", STATES, ids=[str(form.state) for form in STATES.values()])
def test_random_bits_begin_anywhere(state: torch.dtype) -> None:
    """A shard's random numbers begin where it does in the whole tensor: between two groups of eight, and far out."""
    layouts = ["size_4097", "size_257", "transposed"]
    ours, theirs, other = (Case(STATES[state], layouts) for _ in range(3))
    for by in (0, 1, 6, 7):
        ours.rng_offsets = theirs.rng_offsets = torch.tensor([8192 + by, (1 << 45) + 8 * by + 3, 64 * by])
        ours.run(TRITON, 2)
        theirs.run(REFERENCE, 2)
        assert differences(ours, theirs) == []
    other.rng_offsets = torch.tensor([8192 + 6, (1 << 45) + 8 * 7 + 3, 64 * 7])
    other.run(REFERENCE, 2)
    assert "size_4097" in differences(ours, other)  # the negative control


def replaced(**buffers: Tensor | None) -> Callable[[Case], None]:
    return lambda case: case.__dict__.update(buffers)


@pytest.mark.parametrize(
    ("state", "change", "message"),
    [
        (torch.int8, replaced(scales=None), "scales"),
        (torch.int8, replaced(scales=torch.zeros(2, 1)), "scales"),
        (torch.int8, replaced(exp_avg_sq=torch.zeros(768, dtype=torch.int8)), "no state format"),
        (torch.int8, lambda case: case.segments.__setitem__((0, 0), 64), "multiples of 256"),
        (torch.bfloat16, replaced(scales=torch.zeros(2, 4)), "scales"),
        (torch.bfloat16, replaced(master=torch.zeros(1536, dtype=torch.int16)[::2]), "master"),
        (torch.bfloat16, replaced(master=torch.zeros(768, dtype=torch.float16)), "master"),
        (torch.bfloat16, replaced(master=torch.zeros(768, dtype=torch.int16)), "rounded to nearest"),
    ],
    ids=[
        "no_scales",
        "few_scales",
        "second_moment",
        "start",
        "scales_of_none",
        "strided_master",
        "master_dtype",
        "master_rounded",
    ],
)
def test_forms_are_refused_before_anything_is_written(
    state: torch.dtype, change: Callable[[Case], None], message: str
) -> None:
    case = Case(STATES[state], ["size_257"])
    case.run(TRITON, 1)  # the tables of a good step are there
    change(case)
    before = [tensor.clone() for tensor in case.bits()]
    with pytest.raises((ValueError, RuntimeError), match=message):
        case.run(TRITON, 1)
    assert all(torch.equal(a, b) for a, b in zip(case.bits(), before, strict=True))
