"""How one element is stored: every code and every exponent there and back, and rounding that is exact in the mean."""

from __future__ import annotations

import pytest

pytest.importorskip("hypothesis", reason="requirements/dev.txt has it")

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from radam_fused.numerics import philox, quantization
from tests.support.helpers import same_bits

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
ALL_16_BITS = torch.arange(-(2**15), 2**15).to(torch.int16)
RANDOM_BITS = torch.arange(2**16)


def every_exponent() -> Tensor:
    """float32 of every exponent and sign, with mantissas at and around the points where rounding changes."""
    exponents = torch.arange(256) << 23
    edges = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x10000, 0x17FFF, 0x18000, 0x18001, 0x7F7FFF, 0x7F8000, 0x7FFFFF]
    magnitudes = (exponents[:, None] | torch.tensor(edges)).reshape(-1)
    return torch.cat([magnitudes, magnitudes | 0x80000000]).to(torch.uint32).view(torch.float32)


def test_philox_is_philox() -> None:
    """The known answers of its authors (Random123, kat_vectors)."""
    ones = 2**32 - 1
    answers = {
        (0, 0, 0, 0, 0, 0): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
        (ones,) * 6: (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0): (
            0xD16CFE09,
            0x94FDCCEB,
            0x5001E420,
            0x24126EA1,
        ),
    }
    for given_words, answer in answers.items():
        words = [torch.tensor([word]) for word in given_words]
        assert [int(word) for word in philox.philox(tuple(words[:4]), tuple(words[4:]))] == list(answer)


def test_random_bits_are_uniform_and_of_one_place() -> None:
    step, seed = torch.tensor(3), torch.tensor(5)
    drawn = philox.random_bits(0, 100_000, step, seed, philox.MOMENT_STREAM)
    assert torch.equal(drawn[1003:2001], philox.random_bits(1003, 998, step, seed, philox.MOMENT_STREAM))
    for numbers in (drawn, philox.swap_bytes(drawn)):
        assert abs(float(numbers.double().mean()) / 65535 - 0.5) < 4 * (1 / 12 / len(numbers)) ** 0.5
        assert len(numbers.unique()) > 0.7 * 2**16
    together = torch.corrcoef(torch.stack([drawn.double(), philox.swap_bytes(drawn).double()]))[0, 1]
    assert abs(float(together)) < 4 / len(drawn) ** 0.5 + 2**-8
    others = (
        (step + 1, seed, philox.MOMENT_STREAM),
        (step, seed + 1, philox.MOMENT_STREAM),
        (step, seed, philox.PARAM_STREAM),
    )
    for changed in others:
        assert (philox.random_bits(0, 1000, *changed) == drawn[:1000]).float().mean() < 0.01


@pytest.mark.parametrize("dtype", HALF.values(), ids=list(HALF))
def test_stochastic_leaves_every_value_of_its_own(dtype: torch.dtype) -> None:
    values = ALL_16_BITS.view(dtype)
    for draw in (0, 1, 0x5555, 0xFFFF):
        assert same_bits(quantization.round_stochastic(values.float(), torch.full((2**16,), draw), dtype), values)


@pytest.mark.parametrize("x", [1.00123, -3.0e-5, 6.1e-5, 1.7e-7, 2.3e-8, 12345.6, 4e-8], ids=str)
@pytest.mark.parametrize("dtype", HALF.values(), ids=list(HALF))
def test_stochastic_is_exact_in_the_mean(dtype: torch.dtype, x: float) -> None:
    """Over 100,000 roundings within 4 standard errors; which rounding to nearest is not."""
    exact = torch.full((100_000,), x)
    draw = philox.random_bits(0, len(exact), torch.tensor(1), torch.tensor(2), philox.PARAM_STREAM)
    rounded = quantization.round_stochastic(exact, draw, dtype).double()
    low, high = float(rounded.min()), float(rounded.max())
    value = float(exact[0])
    assert low <= value <= high
    allowed = 4 * float(rounded.std()) / len(exact) ** 0.5 + (high - low) * 2.0**-14
    assert abs(float(rounded.mean()) - value) <= allowed
    assert abs(float(exact[0].to(dtype)) - value) > 4 * allowed  # the negative control: to nearest


@pytest.mark.parametrize("dtype", HALF.values(), ids=list(HALF))
def test_stochastic_never_goes_further_than_a_neighbour(dtype: torch.dtype) -> None:
    values = every_exponent()
    values = values[values.isfinite() & (values.abs() < torch.finfo(dtype).max)]
    for draw in (0, 0x8000, 0xFFFF):
        rounded = quantization.round_stochastic(values, torch.full((len(values),), draw), dtype)
        neighbours = torch.nextafter(values.to(dtype), torch.tensor(torch.inf, dtype=dtype).copysign(values.to(dtype)))
        toward = torch.nextafter(values.to(dtype), torch.zeros((), dtype=dtype))
        assert ((rounded == values.to(dtype)) | (rounded == neighbours) | (rounded == toward)).all()


def test_split_is_the_whole_float32() -> None:
    """Over every exponent; over all 65,536 bfloat16 with some low bits; a NaN stays one."""
    upper = ALL_16_BITS.view(torch.bfloat16)
    pairs = [(upper.view(torch.int16).int() << 16) | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]
    for x in (every_exponent(), *(pair.view(torch.float32) for pair in pairs)):
        high, low = quantization.to_parameter(x, torch.bfloat16), quantization.low_bits(x)
        assert same_bits(quantization.join(high, low), x)
        nearest = (high.float() - x).abs() <= (x.bfloat16().float() - x).abs()
        assert nearest[x.isfinite() & high.isfinite()].all()
    # Ties to even, the negative control, do not know which way they went.
    x = (torch.tensor([0x3F808000, 0x3F818000])).to(torch.int32).view(torch.float32)
    assert not same_bits(quantization.join(x.bfloat16(), quantization.low_bits(x)), x)


@given(st.integers(0, 2**32 - 1))
def test_split_is_the_whole_float32_for_any(bits: int) -> None:
    x = torch.tensor([bits], dtype=torch.int64).to(torch.uint32).view(torch.float32)
    assert same_bits(quantization.join(quantization.to_parameter(x, torch.bfloat16), quantization.low_bits(x)), x)


@pytest.mark.parametrize("dtype", HALF.values(), ids=list(HALF))
def test_a_master_copy_is_used_until_its_parameter_is_written(dtype: torch.dtype) -> None:
    master = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    p = quantization.to_parameter(master, dtype)
    assert same_bits(quantization.from_master(p, master), master)
    written = p.clone()
    written[::2] *= 2
    assert same_bits(quantization.from_master(written, master)[::2], written[::2].float())
    assert same_bits(quantization.from_master(written, master)[1::2], master[1::2])


def block(seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(1, quantization.BLOCK, generator=torch.Generator().manual_seed(seed)) * scale


def test_every_code_there_and_back() -> None:
    """Decoded and encoded again a block finds its scale, whatever is drawn; and each code itself, with half a step."""
    generator = torch.Generator().manual_seed(0)
    many = torch.rand(5000, 1, generator=generator) * 2.0 ** torch.randint(-60, 40, (5000, 1), generator=generator)
    codes = torch.arange(256.0).expand(5000, -1)
    firsts = torch.cat([torch.arange(-127.0, 128.0), torch.tensor([5.0])])
    for rand16 in (0, 0x8000, 0xFFFF):
        drawn = torch.full((5000, 256), rand16)
        _, scale = quantization.encode_root(many.expand(-1, 256), drawn)
        root = quantization.decode_root(codes, scale)
        again, found = quantization.encode_root(root, drawn)
        assert same_bits(found, scale)
        assert torch.equal(again, codes) or rand16 != 0x8000
        # Of the first moment with any code of the root but 0, under which there is none.
        by = torch.randint(1, 256, (5000, 256), generator=generator).float()
        _, first_scale = quantization.encode_first(many * 2.0**-20, by[:, :1].expand(-1, 256), scale, drawn)
        m = quantization.decode_first(firsts.expand(5000, -1), first_scale, by)
        again, found = quantization.encode_first(m, by, scale, drawn)
        assert same_bits(found, first_scale)
        assert torch.equal(again, firsts.expand(5000, -1)) or rand16 != 0x8000


def test_the_greatest_of_a_block_has_the_greatest_code() -> None:
    """Whatever is drawn: or the scale of a block that gets no gradient would wander."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20_000, 256, generator=generator)
    x[:, 7] = 1.0
    x *= torch.rand(20_000, 1, generator=generator) * 2.0 ** torch.randint(-60, 40, (20_000, 1), generator=generator)
    for rand16 in (0, 0xFFFF):
        drawn = torch.full(x.shape, rand16)
        code, scale = quantization.encode_root(x, drawn)
        assert (code[:, 7] == 255.0).all()
        one = torch.ones_like(x)
        for sign in (1.0, -1.0):
            first, _ = quantization.encode_first(x * sign * 2.0**-20, one, scale, drawn)
            assert (first[:, 7] == 127.0 * sign).all()


def test_codes_of_the_root_are_near_its_square_root() -> None:
    """Straight pieces between the values of the square root at every power of two."""
    code = torch.arange(1.0, 256.0)
    value = quantization.decode_root(code, torch.tensor(2.0))
    assert (value.diff() > 0).all()
    assert torch.allclose(value.sqrt(), code, rtol=0.07, atol=0)
    powers = code[code.frexp().mantissa == 0.5].long() - 1
    assert torch.equal(value[powers].sqrt(), code[powers])


def test_codes_are_close_and_exact_in_the_mean() -> None:
    """The root and m themselves, not only their codes: within an octave codes are linear, and octaves end at codes."""
    root = block().abs()
    many = root.expand(4000, -1).contiguous()
    draw = philox.random_bits(0, many.numel(), torch.tensor(1), torch.tensor(2), philox.MOMENT_STREAM).view_as(many)
    code, scale = quantization.encode_root(many, draw)
    above_least = root[0] >= scale[0] / 2
    found = quantization.decode_root(code, scale).double()
    error = (found.mean(0) - root[0].double()).abs()
    assert (error <= 4 * found.std(0) / 4000**0.5 + 2e-4 * root[0])[above_least].all()
    m = block(1)
    first, first_scale = quantization.encode_first(m.expand_as(many), code, scale, philox.swap_bytes(draw))
    back = quantization.decode_first(first, first_scale, code).double()
    error = (back.mean(0) - m[0].double()).abs()
    assert (error <= 4 * back.std(0) / 4000**0.5 + 2e-4 * m[0].abs()).all()
    assert not ((back[0] - m[0].double()).abs() <= 4 * back.std(0) / 4000**0.5).all()  # the negative control: one draw


def test_zero_is_exact_and_rest_is_reached() -> None:
    zero = torch.zeros(1, 256)
    draw = torch.full((1, 256), 0xFFFF)
    code, scale = quantization.encode_root(zero, draw)
    assert not code.any()
    assert float(scale) == 0.0
    first, first_scale = quantization.encode_first(zero, code, scale, draw)
    assert not first.any()
    assert float(first_scale) == 0.0
    # Of a root that is not zero no code is, or m would have nothing to be measured by.
    tiny = block().abs()
    tiny[0, 1:] *= 1e-12
    code, scale = quantization.encode_root(tiny, torch.zeros(1, 256, dtype=torch.int64))
    assert code.min() == 1
    # A first moment without a root has none.
    first, _ = quantization.encode_first(block(), torch.zeros(1, 256), scale, draw * 0)
    assert not first.any()
    root, scale = quantization.encode_root(torch.ones(1, 256), draw)
    unit = quantization.decode_first(torch.ones(1, 256), torch.ones(1, 1), root) * 4 / 16  # 4 over the power
    for quotient, rests in ((2.0**-111, True), (2.0**-109, False)):
        first, _ = quantization.encode_first(unit * quotient, root, scale, draw * 0)
        assert bool((first == 0).all()) == rests


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_a_block_with_what_is_not_finite_is_nan(value: float) -> None:
    """Codes of 0, as what is made of a NaN would depend on the processor, and scales of NaN."""
    draw = torch.zeros(1, 256, dtype=torch.int64)
    root = block().abs()
    fine = quantization.encode_root(root, draw)
    root[0, 7] = value
    code, scale = quantization.encode_root(root, draw)
    assert not code.any()
    assert quantization.decode_root(code, scale).isnan().all()
    first, first_scale = quantization.encode_first(block(), code, scale, draw)
    assert not first.any()
    assert first_scale.isnan()
    m = block()
    m[0, 7] = value
    first, first_scale = quantization.encode_first(m, *fine, draw)
    assert not first.any()
    assert quantization.decode_first(first, first_scale, fine[0]).isnan().all()
