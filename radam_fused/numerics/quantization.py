"""Moments, master weights and parameters in fewer bits than float32: how each is rounded, encoded and decoded.

The arithmetic of a step is float32 whatever the state's format; these functions turn what is stored into float32 and
back, one operation per line (docs/precision.md has the formulae). Must match csrc/numerics/quantization.h and
backends/triton/quantization.py bit for bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .layout import BLOCK

HALF_MIN, HALF_MAX = 2.0**-24, 65504.0
"""float16's smallest and largest positive numbers."""
MIN_SCALE = 2.0**-110
"""A block of first moments whose largest quotient is below this underflows to zero as a whole."""
ROOT_TOP = 32512.0
"""The value of the root's largest code, 255, in units of the block's scale."""
CODE_UNIT = 2.0**-64
"""One code of the root, as `half_exponent` has it."""


def square_root(v: Tensor) -> Tensor:
    """The correctly rounded square root, as IEEE 754 asks; torch.sqrt on the CPU may be MKL's, off by one ulp at times.

    The root of a float32 is farther from the midpoint of two float32 than the error of a float64 root, so rounding the
    float64 root to float32 is correct. For float64 itself the C library's root is correct.
    """
    if v.dtype == torch.float32:
        return torch.sqrt(v.double()).float()
    if v.device.type != "cpu":
        return torch.sqrt(v)
    return v.clone().apply_(lambda x: math.sqrt(x) if x >= 0.0 else math.nan)


def bits_of(x: Tensor) -> Tensor:
    """The bits of float32 values, as int64 in [0, 2^32)."""
    return x.contiguous().view(torch.int32).long() & 0xFFFFFFFF


def _int16(bits: Tensor) -> Tensor:
    return ((bits ^ 0x8000) - 0x8000).to(torch.int16)


def round_stochastic(x: Tensor, rand16: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 rounded to bfloat16 or float16, up in magnitude with the probability that makes the mean exact."""
    bits = bits_of(x)
    sign, rest = (bits >> 16) & 0x8000, bits & 0x7FFFFFFF
    if dtype == torch.bfloat16:
        rounded = torch.where(rest > 0x7F800000, 0x7FC0, sign | ((rest + rand16) >> 16))
        return _int16(rounded).view(torch.bfloat16)
    normal = ((rest + (rand16 >> 3) - 0x38000000) >> 13).clamp(max=0x7C00)
    magnitude = torch.where(rest < 0x38800000, x.abs(), 0.0)
    subnormal = (magnitude * 2.0**24 + (rand16 >> 2).float() * 2.0**-14).long()  # in units of the smallest one
    finite = torch.where(rest < 0x38800000, subnormal, normal)
    special = torch.where(rest > 0x7F800000, 0x7E00, 0x7C00)
    return _int16(sign | torch.where(rest >= 0x47800000, special, finite)).view(torch.float16)


def to_parameter(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The parameter for a float32 master weight; for bfloat16, rounded to nearest, ties away from zero.

    The 16 bits that ``"split"`` stores could not undo a rounding of ties to even. ``"fp32"`` rounds in the same way.
    """
    if dtype != torch.bfloat16:
        return x.to(dtype)
    bits = bits_of(x)
    rounded = ((bits + 0x8000) >> 16) & 0xFFFF
    return _int16(torch.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, rounded)).view(torch.bfloat16)


def join(high: Tensor, low: Tensor) -> Tensor:
    """The float32 master weight of a bfloat16 parameter and the int16 that ``"split"`` stores."""
    bits = (high.contiguous().view(torch.int16).int() << 16) + low.int()
    return bits.view(torch.float32)


def low_bits(x: Tensor) -> Tensor:
    """The lower 16 bits, as int16: `join` makes x of ``to_parameter(x)`` and these."""
    bits = bits_of(x)
    return _int16(torch.where((bits & 0x7FFFFFFF) > 0x7F800000, 0, bits & 0xFFFF))


def from_master(param: Tensor, master: Tensor) -> Tensor:
    """The float32 master weight; the parameter's own value where user code has written another one into it."""
    same = to_parameter(master, param.dtype).view(torch.int16) == param.view(torch.int16)
    return torch.where(same, master, param.float())


def blocks(x: Tensor) -> Tensor:
    """One-dimensional values as (blocks, 256), the last block filled up with zeros."""
    return torch.nn.functional.pad(x, (0, -x.numel() % BLOCK)).view(-1, BLOCK)


def max_magnitude(x: Tensor) -> Tensor:
    """The largest magnitude of each block, (blocks, 1); NaN for a block with a NaN."""
    bits = (x.view(torch.int32) & 0x7FFFFFFF).amax(1, keepdim=True)
    return torch.where(bits > 0x7F800000, 0x7FC00000, bits).view(torch.float32)


def _scale_factor(number: float, x: Tensor) -> Tensor:
    """The float32 after ``number / x``; 0 for x = 0.

    With a factor that was rounded down, the largest element of a block would not get the largest code. The division
    is of two tensors, since torch computes a number over a tensor as a reciprocal and a product.
    """
    quotient = torch.full_like(x, number) / x
    return torch.where(x > 0.0, (quotient.view(torch.int32) + 1).view(torch.float32), 0.0)


def _block_scale(largest: Tensor, unit: float) -> Tensor:
    """A block's scale, with 23 bits so that encoding decoded values gives the same codes; NaN for a NaN."""
    scale = largest * torch.tensor(unit, dtype=torch.float32, device="cpu")
    even = ((scale.view(torch.int32) + 1) & ~1).view(torch.float32)
    return torch.where(largest.isfinite(), even, torch.nan)


def half_exponent(x: Tensor) -> Tensor:
    """The bits shifted right by one: a piecewise linear square root, one piece per octave, times 2^-63.5."""
    return (x.contiguous().view(torch.int32) >> 1).view(torch.float32)


def double_exponent(x: Tensor) -> Tensor:
    """The inverse of `half_exponent`."""
    return (x.contiguous().view(torch.int32) << 1).view(torch.float32)


def _stochastic_code(c: Tensor, offset: float, rand16: Tensor) -> Tensor:
    """Rounds c up or down by random bits, to its low 8 bits; ``offset`` makes c fixed point with 14 fraction bits."""
    fixed = bits_of(c + torch.tensor(offset, dtype=torch.float32, device="cpu"))
    return ((fixed << 2) + rand16 >> 16) & 0xFF


def encode_root(root: Tensor, rand16: Tensor) -> tuple[Tensor, Tensor]:
    """Square roots of the second moment, (blocks, 256), as codes linear in each octave: code and scale."""
    largest = max_magnitude(root)
    c = half_exponent(root * _scale_factor(ROOT_TOP, largest))
    c = torch.maximum(c, root.clamp(max=CODE_UNIT))
    code = _stochastic_code(c, 512.0 * CODE_UNIT, rand16)
    return torch.where(largest.isfinite(), code, 0).float(), _block_scale(largest, 1.0 / ROOT_TOP)


def _octaves(code: Tensor) -> Tensor:
    """The value of a code of the root: 0, or from 1/2 to `ROOT_TOP`."""
    return double_exponent(code * CODE_UNIT)


def decode_root(code: Tensor, scale: Tensor) -> Tensor:
    """The square root of the second moment."""
    return _octaves(code) * scale


def _power(code: Tensor) -> Tensor:
    """The power of two at or below the value of a code of the root; 0 for code 0."""
    return (_octaves(code).view(torch.int32) & 0x7F800000).view(torch.float32)


def encode_first(m: Tensor, root_code: Tensor, root_scale: Tensor, rand16: Tensor) -> tuple[Tensor, Tensor]:
    """The first moment, (blocks, 256), as codes linear in its quotient with `_power` of the root's: code and scale."""
    inverse = (-0x80000000 - _power(root_code).view(torch.int32)).view(torch.float32)  # 4 / power; -0 for 0
    quotient = m * inverse
    largest = torch.where(root_scale.isfinite(), max_magnitude(quotient), torch.nan)
    largest = torch.where(largest < MIN_SCALE, 0.0, largest)
    code = _stochastic_code(quotient * _scale_factor(127.0, largest), 768.0, rand16)
    code = (code ^ 0x80) - 0x80
    return torch.where(largest.isfinite(), code, 0).float(), _block_scale(largest, 1.0 / 508.0)


def decode_first(code: Tensor, scale: Tensor, root_code: Tensor) -> Tensor:
    """The first moment."""
    return code * scale * _power(root_code)


def encode_half_root(root: Tensor, rand16: Tensor) -> Tensor:
    """Square roots of the second moment as float16: their own square root, at least HALF_MIN where they are above 0."""
    fourth = square_root(root)
    fourth = torch.where((fourth > 0.0) & (fourth < HALF_MIN), HALF_MIN, fourth)
    return round_stochastic(fourth, rand16, torch.float16)


def decode_half_root(fourth: Tensor) -> Tensor:
    """The square root of the second moment."""
    return fourth.float() * fourth.float()


def encode_half_first(m: Tensor, root: Tensor, rand16: Tensor) -> Tensor:
    """The first moment as float16: its quotient with the decoded root, clamped to HALF_MAX where it is finite."""
    quotient = torch.where(root > 0.0, m / root, 0.0)
    limited = torch.where(quotient.isfinite(), quotient.clamp(-HALF_MAX, HALF_MAX), quotient)
    return round_stochastic(limited, rand16, torch.float16)
