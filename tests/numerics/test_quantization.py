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
    for draw in (0, 0x8000):
        drawn = torch.full((1, 256), draw)
        roots = torch.arange(256.0)[None]
        for scale in (1.0, 3.7e-5, 2.0**40):
            root = quantization.decode_root(roots, torch.tensor([[scale]]))
            again, found = quantization.encode_root(root, drawn)
            assert float(found) == torch.tensor(scale).item()
            if draw:
                assert torch.equal(again, roots)
        firsts = torch.arange(-127.0, 128.0)[None]
        root = torch.full((1, 255), 0.5)
        m = quantization.decode_first(firsts, torch.tensor([[1.5]]), root)
        again, found = quantization.encode_first(m, root, drawn[:, :255])
        assert float(found) == 1.5
        if draw:
            assert torch.equal(again, firsts)


def test_codes_are_close_and_exact_in_the_mean() -> None:
    root = block().abs()
    many = root.expand(4000, -1).contiguous()
    draw = philox.random_bits(0, many.numel(), torch.tensor(1), torch.tensor(2), philox.MOMENT_STREAM).view_as(many)
    code, scale = quantization.encode_root(many, draw)
    # In the code's own measure, the square root of the root.
    c = code.double().mean(0)
    exact = (root[0].double() / scale[0].double()).sqrt() * 255
    assert ((c - exact).abs() <= 4 * 0.5 / 4000**0.5 + 2e-4).all()
    m = block(1)
    first, first_scale = quantization.encode_first(m.expand_as(many), many, philox.swap_bytes(draw))
    exact = (m[0] / root[0]).double() / first_scale[0].double() * 127
    assert ((first.double().mean(0) - exact).abs() <= 4 * 0.5 / 4000**0.5 + 2e-4).all()
    assert not ((first[0].double() - exact).abs() <= 0.04).all()  # the negative control: a single draw


def test_zero_is_exact_and_rest_is_reached() -> None:
    zero = torch.zeros(1, 256)
    draw = torch.full((1, 256), 0xFFFF)
    code, scale = quantization.encode_root(zero, draw)
    assert not code.any()
    assert float(scale) == 0.0
    first, first_scale = quantization.encode_first(zero, quantization.decode_root(code, scale), draw)
    assert not first.any()
    assert float(first_scale) == 0.0
    # Of a root that is not zero no code is, or m would have nothing to be measured by.
    tiny = block().abs()
    tiny[0, 1:] *= 1e-12
    code, _ = quantization.encode_root(tiny, torch.zeros(1, 256, dtype=torch.int64))
    assert code.min() == 1
    root = torch.ones(1, 256)
    for scale, rests in ((2.0**-101, True), (2.0**-99, False)):
        first, _ = quantization.encode_first(root * scale, root, draw * 0)
        assert bool((first == 0).all()) == rests


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_what_is_not_finite_stays_so(value: float) -> None:
    root = block().abs()
    root[0, 7] = value
    code, scale = quantization.encode_root(root, torch.zeros(1, 256, dtype=torch.int64))
    assert not quantization.decode_root(code, scale)[0, 7].isfinite()
    m = block()
    m[0, 7] = value
    first, first_scale = quantization.encode_first(m, block().abs(), torch.zeros(1, 256, dtype=torch.int64))
    assert not quantization.decode_first(first, first_scale, block().abs())[0, 7].isfinite()
