"""Elements of low-precision state in Triton: random bits, stochastic rounding, master copies and codes of 8 bits.

Must match numerics/quantization.py, numerics/philox.py and csrc/numerics/quantization.h bit for bit. 16-bit
values are rounded in integer arithmetic, so that the interpreter gives the GPU's bits.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

import triton
import triton.language as tl

from .constants import (
    BLOCK,
    CODE_BIAS,
    CODE_OFFSET,
    CODE_UNIT,
    FIRST_UNIT,
    HALF_MIN,
    MIN_SCALE,
    RANDS_PER_CALL,
    ROOT_TOP,
    ROOT_UNIT,
    S_SEED,
    S_STEP,
)
from .step_kernel import narrow, widen

_MAGNITUDE = tl.constexpr(0x7FFFFFFF)
_INFINITY = tl.constexpr(0x7F800000)
_QUIET_NAN = tl.constexpr(0x7FC00000)
_RAND16_UNIT = tl.constexpr(2.0**-16)
_RAND14_UNIT = tl.constexpr(2.0**-14)
_SUBNORMALS = tl.constexpr(2.0**24)
"""Of float16 in 1."""
_LARGEST = tl.constexpr(0x477FE000)
"""The bits of the largest float16, 65504: ``kLargest`` in csrc/numerics/quantization.h."""
_SIGN = tl.constexpr(-0x80000000)


@triton.jit
def _philox(group, scalars_ptr, stream: tl.constexpr):
    step = tl.load(scalars_ptr + S_STEP).to(tl.int64).to(tl.uint32)
    k0 = tl.load(scalars_ptr + S_SEED).to(tl.int64).to(tl.uint32)
    c0 = group.to(tl.uint32)
    c1 = (group >> 32).to(tl.uint32)
    c2 = tl.zeros_like(c0) + step
    c3 = tl.full(c0.shape, stream, tl.uint32)
    for k in tl.static_range(10):
        a = c0.to(tl.uint64) * 0xD2511F53
        b = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (b >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = b.to(tl.uint32)
        c2 = (a >> 32).to(tl.uint32) ^ c3 ^ ((k * 0xBB67AE85) & 0xFFFFFFFF)
        c3 = a.to(tl.uint32)
        k0 = k0 + 0x9E3779B9
    return c0, c1, c2, c3


@triton.jit
def _odd(by, low, high):
    return tl.where((by & 1) != 0, (low >> 16) | (high << 16), low)


@triton.jit
def random_bits(start, scalars_ptr, stream: tl.constexpr, COUNT: tl.constexpr, ANYWHERE: tl.constexpr):
    """16 random bits for each of COUNT neighbours from ``start`` on, a multiple of 8 or ANYWHERE: uint32 (COUNT)."""
    group = (start // RANDS_PER_CALL).to(tl.uint64) + tl.arange(0, COUNT // RANDS_PER_CALL).to(tl.uint64)
    c0, c1, c2, c3 = _philox(group, scalars_ptr, stream)
    if ANYWHERE:  # the end of a group and the beginning of the next: as many 16-bit numbers further in eight words
        by = (start % RANDS_PER_CALL).to(tl.int32)
        c4, c5, c6, c7 = _philox(group + 1, scalars_ptr, stream)
        c0, c1, c2 = tl.where((by & 4) != 0, c2, c0), tl.where((by & 4) != 0, c3, c1), tl.where((by & 4) != 0, c4, c2)
        c3, c4, c5 = tl.where((by & 4) != 0, c5, c3), tl.where((by & 4) != 0, c6, c4), tl.where((by & 4) != 0, c7, c5)
        c0, c1, c2 = tl.where((by & 2) != 0, c1, c0), tl.where((by & 2) != 0, c2, c1), tl.where((by & 2) != 0, c3, c2)
        c3, c4 = tl.where((by & 2) != 0, c4, c3), tl.where((by & 2) != 0, c5, c4)
        c0, c1 = _odd(by, c0, c1), _odd(by, c1, c2)
        c2, c3 = _odd(by, c2, c3), _odd(by, c3, c4)
    words = tl.join(tl.join(c0, c2), tl.join(c1, c3))  # in order, once they are read row by row
    return tl.reshape(tl.join(words & 0xFFFF, words >> 16), [COUNT])


@triton.jit
def swap_bytes(rand16):
    """A second 16-bit number from each, by swapping its bytes: its upper bits are the lower bits of the first."""
    return ((rand16 << 8) | (rand16 >> 8)) & 0xFFFF


@triton.jit
def round_stochastic(x, rand16, STORED: tl.constexpr):
    """float32 as it is stored, rounded up in magnitude with the probability that makes the mean exact."""
    bits = x.to(tl.uint32, bitcast=True)
    rest = bits & _MAGNITUDE
    if STORED == tl.int16:  # a bfloat16
        return tl.where(rest > _INFINITY, 0x7FC0, (bits + rand16) >> 16).to(tl.int16)
    elif STORED == tl.float16:
        sign = (bits >> 16) & 0x8000
        normal = tl.minimum((rest + (rand16 >> 3) - 0x38000000) >> 13, 0x7C00)
        # In units of the least subnormal; 14 of the bits, so that what is a whole number of them stays one.
        magnitude = tl.where(rest < 0x38800000, rest.to(tl.float32, bitcast=True), 0.0)
        subnormal = (magnitude * _SUBNORMALS + (rand16 >> 2).to(tl.int32).to(tl.float32) * _RAND14_UNIT).to(tl.int32)
        finite = tl.where(rest < 0x38800000, subnormal.to(tl.uint32), normal)
        special = tl.where(rest > _INFINITY, 0x7E00, 0x7C00).to(tl.uint32)
        half = sign | tl.where(rest >= 0x47800000, special, finite)
        return half.to(tl.int16).to(tl.float16, bitcast=True)
    else:
        return x


@triton.jit
def to_parameter(x, PARAM: tl.constexpr):
    """What the parameter of a master copy is: to bfloat16 rounded to nearest, ties away from zero.

    Ties to even could not be undone by the 16 bits that ``"split"`` keeps; both formats of master copies round alike.
    """
    if PARAM == tl.int16:
        bits = x.to(tl.uint32, bitcast=True)
        return tl.where((bits & _MAGNITUDE) > _INFINITY, 0x7FC0, (bits + 0x8000) >> 16).to(tl.int16)
    else:
        return narrow(x, PARAM)


@triton.jit
def from_master(p, master, PARAM: tl.constexpr):
    """The master copy; the parameter where user code has written another value than the master copy's into it."""
    same = to_parameter(master, PARAM).to(tl.int16, bitcast=True) == p.to(tl.int16, bitcast=True)
    return tl.where(same, master, widen(p, tl.float32))


@triton.jit
def join(high, low):
    """The float32 that a bfloat16 and the int16 of ``"split"`` make up."""
    return ((high.to(tl.int32) << 16) + low.to(tl.int32)).to(tl.float32, bitcast=True)


@triton.jit
def low_bits(x):
    """The lower half of the bits, int16, which `join` adds to ``to_parameter(x)``."""
    bits = x.to(tl.uint32, bitcast=True)
    return tl.where((bits & _MAGNITUDE) > _INFINITY, 0, bits).to(tl.int16)


@triton.jit
def compensated(p, compensation, decrease, PARAM: tl.constexpr):
    """Kahan's sum: the parameter takes what it can of the update, and the compensation the rest; both as stored."""
    before = widen(p, tl.float32)
    update = compensation - decrease
    after = narrow(before + update, PARAM)
    stored = widen(after, tl.float32)
    rest = (before - stored) + update
    infinite = (stored.to(tl.int32, bitcast=True) & _MAGNITUDE) == _INFINITY  # of which there is no rest
    return after, narrow(tl.where(infinite, 0.0, rest), PARAM)


@triton.jit
def spread(scale, COUNT: tl.constexpr):
    """To each element what its block has: (COUNT / 256) to (COUNT)."""
    return tl.reshape(tl.broadcast_to(scale[:, None], [COUNT // BLOCK, BLOCK]), [COUNT])


@triton.jit
def max_magnitude(x, inside, COUNT: tl.constexpr):
    """The bits of the largest magnitude of each block, (COUNT / 256). Lanes outside count as 0."""
    bits = x.to(tl.int32, bitcast=True) & _MAGNITUDE  # compared so, a NaN is the largest of all
    if inside is not None:
        bits = tl.where(inside, bits, 0)
    return tl.max(tl.reshape(bits, [COUNT // BLOCK, BLOCK]), axis=1)


@triton.jit
def _block_scale(largest, top: tl.constexpr, unit: tl.constexpr):
    # Of blocks the scale, 23 bits of it, and the factor: the next float up, as with a factor that was rounded down the
    # greatest element of a block would get a code below the greatest code.
    magnitude = largest.to(tl.float32, bitcast=True)
    scale = (magnitude * unit).to(tl.int32, bitcast=True)
    scale = tl.where(largest < _INFINITY, (scale + 1) & -2, _QUIET_NAN).to(tl.float32, bitcast=True)
    quotient = tl.math.div_rn(tl.full(largest.shape, top, tl.float32), magnitude)
    factor = (quotient.to(tl.int32, bitcast=True) + 1).to(tl.float32, bitcast=True)
    return scale, tl.where(magnitude > 0.0, factor, 0.0)


@triton.jit
def _stochastic_code(c, offset: tl.constexpr, rand16, codes):
    # A number in fixed point with 14 bits after the point; its code is byte 2 of the sum.
    fixed = ((c + offset).to(tl.uint32, bitcast=True) << 2) + rand16
    return (fixed >> 16) & codes


@triton.jit
def octaves(code):
    """What codes of the root stand for, in units of the scale: from 1/2 to 32512, or 0."""
    c = (code.to(tl.int32) | 0x2B000000).to(tl.float32, bitcast=True) - CODE_BIAS
    return (c.to(tl.int32, bitcast=True) << 1).to(tl.float32, bitcast=True)


@triton.jit
def encode_root(root, rand16, inside, COUNT: tl.constexpr):
    """Square roots of the second moment as codes linear in each octave: code, scale, largest's bits."""
    largest = max_magnitude(root, inside, COUNT)
    scale, factor = _block_scale(largest, ROOT_TOP, ROOT_UNIT)
    c = (root * spread(factor, COUNT)).to(tl.uint32, bitcast=True) >> 1
    c = tl.maximum(c.to(tl.float32, bitcast=True), tl.minimum(root, CODE_UNIT))
    codes = spread(tl.where(largest < _INFINITY, 0xFF, 0), COUNT)
    return _stochastic_code(c, CODE_OFFSET, rand16, codes), scale, largest


@triton.jit
def _power(octaves):
    return octaves.to(tl.int32, bitcast=True) & _INFINITY


@triton.jit
def encode_first(m, root_code, root_largest, rand16, inside, COUNT: tl.constexpr):
    """The first moment as codes linear in its quotient with the power of two below the decoded root: code and scale."""
    power = _power(octaves(root_code))
    quotient = m * (-power ^ _SIGN).to(tl.float32, bitcast=True)  # 4 over the power; -0 for 0
    largest = max_magnitude(quotient, inside, COUNT)
    largest = tl.where(largest.to(tl.float32, bitcast=True) < MIN_SCALE, 0, largest)
    largest = tl.where(root_largest < _INFINITY, largest, _QUIET_NAN)
    scale, factor = _block_scale(largest, 127.0, FIRST_UNIT)
    codes = spread(tl.where(largest < _INFINITY, 0xFF, 0), COUNT)
    return _stochastic_code(quotient * spread(factor, COUNT), 768.0, rand16, codes), scale


@triton.jit
def decode_first(code, scale, octaves):
    """The first moment, by each element's code and scale and its root's octaves."""
    return code.to(tl.float32) * scale * _power(octaves).to(tl.float32, bitcast=True)


@triton.jit
def encode_half_root(root, rand16):
    """Square roots of the second moment as float16: their own square root, at least HALF_MIN where they are above 0."""
    fourth = tl.math.sqrt_rn(root)
    fourth = tl.where((fourth > 0.0) & (fourth < HALF_MIN), HALF_MIN, fourth)
    return round_stochastic(fourth, rand16, tl.float16)


@triton.jit
def decode_half_root(fourth):
    """The square root of the second moment."""
    return fourth.to(tl.float32) * fourth.to(tl.float32)


@triton.jit
def encode_half_first(m, root, rand16):
    """The first moment as float16: its quotient with the decoded root, clamped where it is finite."""
    quotient = tl.where(root > 0.0, tl.math.div_rn(m, root), 0.0)
    bits = quotient.to(tl.uint32, bitcast=True)
    rest = bits & _MAGNITUDE
    limited = tl.where((rest > _LARGEST) & (rest < _INFINITY), (bits ^ rest) | _LARGEST, bits)
    return round_stochastic(limited.to(tl.uint32).to(tl.float32, bitcast=True), rand16, tl.float16)
