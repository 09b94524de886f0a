"""The ``reference`` backend's stored forms: how moments, master weights and parameters lie in fewer bits.

The arithmetic of a step is float32 whatever the form; these functions turn what is stored into float32 and back, one
operation a line (docs/precision.md gives the formulae). Every backend has their twin:
csrc/numerics/quantization.h, csrc/numerics/philox.h and
triton_stored.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...numerics.layout import moment_strides
from ...numerics.scalars import HOLD, SKIP, Row
from .update import advance, decrease, square_root

BLOCK = 256
"""Elements that share a scale under int8 moments."""
PARAMETER, MOMENTS = 0, 1
"""The streams of random numbers: for a parameter's rounding and for its moments'."""
DRAWS = 8
"""16-bit random numbers that one Philox call gives: to as many neighbours in the flat index space."""
HALF_UNIT, HALF_LARGEST = 2.0**-24, 65504.0
"""The least and the largest of float16's positive numbers."""
REST = 2.0**-100
"""A block whose m / sqrt(v) is nowhere larger than this is at rest: its first moment is zero."""
_LOW = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11): four 32-bit words.

    Args:
        counter: int64 tensors of 32-bit values that broadcast against one another.
        key: the same.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # modulo 2^64, which keeps both halves of the product
        c0, c1, c2, c3 = (
            ((b >> 32) & _LOW) ^ c1 ^ k0,
            b & _LOW,
            ((a >> 32) & _LOW) ^ c3 ^ k1,
            a & _LOW,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return c0, c1, c2, c3


def draws(start: int, count: int, step: Tensor, seed: Tensor, stream: int) -> Tensor:
    """The 16-bit random numbers of neighbouring elements, int64 (count): from `start` in the flat index space on."""
    first = start // DRAWS
    group = torch.arange(first, -(-(start + count) // DRAWS), dtype=torch.int64, device=step.device)
    zero = torch.zeros_like(group)
    words = philox((group & _LOW, group >> 32, step + zero, stream + zero), (seed, torch.zeros_like(seed)))
    halves = torch.stack([half for word in words for half in (word & 0xFFFF, word >> 16)], dim=1)
    return halves.reshape(-1)[start - first * DRAWS :][:count]


def other(draw: Tensor) -> Tensor:
    """A second random number from each: its bytes swapped, so that either's upper bits are the other's lower ones."""
    return ((draw << 8) | (draw >> 8)) & 0xFFFF


def bits_of(x: Tensor) -> Tensor:
    """The bits of float32 values, as int64 from 0."""
    return x.contiguous().view(torch.int32).long() & _LOW


def _int16(bits: Tensor) -> Tensor:
    return ((bits ^ 0x8000) - 0x8000).to(torch.int16)


def stochastic(x: Tensor, draw: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 rounded to bfloat16 or float16, up in magnitude with the probability that makes the mean exact."""
    bits = bits_of(x)
    sign, rest = (bits >> 16) & 0x8000, bits & 0x7FFFFFFF
    if dtype == torch.bfloat16:
        rounded = torch.where(rest > 0x7F800000, 0x7FC0, sign | ((rest + draw) >> 16))
        return _int16(rounded).view(torch.bfloat16)
    normal = ((rest + (draw >> 3) - 0x38000000) >> 13).clamp(max=0x7C00)
    magnitude = torch.where(rest < 0x38800000, x.abs(), 0.0)
    subnormal = (magnitude * 2.0**24 + (draw >> 2).float() * 2.0**-14).long()  # in units of the least one
    finite = torch.where(rest < 0x38800000, subnormal, normal)
    special = torch.where(rest > 0x7F800000, 0x7E00, 0x7C00)
    return _int16(sign | torch.where(rest >= 0x47800000, special, finite)).view(torch.float16)


def to_parameter(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What the parameter of a master copy is: to bfloat16 rounded to nearest, ties away from zero.

    Ties to even could not be undone by the 16 bits that ``"split"`` keeps; both forms of master copies round alike.
    """
    if dtype != torch.bfloat16:
        return x.to(dtype)
    bits = bits_of(x)
    rounded = ((bits + 0x8000) >> 16) & 0xFFFF
    return _int16(torch.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, rounded)).view(torch.bfloat16)


def join(high: Tensor, low: Tensor) -> Tensor:
    """The float32 that a bfloat16 and the int16 of ``"split"`` make up."""
    bits = (high.contiguous().view(torch.int16).int() << 16) + low.int()
    return bits.view(torch.float32)


def low_bits(x: Tensor) -> Tensor:
    """What `join` takes beside ``to_parameter(x)``, int16."""
    bits = bits_of(x)
    return _int16(torch.where((bits & 0x7FFFFFFF) > 0x7F800000, 0, bits & 0xFFFF))


def from_master(param: Tensor, master: Tensor) -> Tensor:
    """The master copy, but where somebody else has written the parameter since: that."""
    same = to_parameter(master, param.dtype).view(torch.int16) == param.view(torch.int16)
    return torch.where(same, master, param.float())


def blocks(x: Tensor) -> Tensor:
    """One-dimensional values as (blocks, 256), the last block filled up with zeros."""
    return torch.nn.functional.pad(x, (0, -x.numel() % BLOCK)).view(-1, BLOCK)


def largest(x: Tensor) -> Tensor:
    """The largest magnitude of each block, (blocks, 1); NaN where there is one."""
    bits = (x.view(torch.int32) & 0x7FFFFFFF).amax(1, keepdim=True)
    return torch.where(bits > 0x7F800000, 0x7FC00000, bits).view(torch.float32)


def _factor(number: float, x: Tensor) -> Tensor:
    """One rounded division (torch makes a number over a tensor a reciprocal and a product), and the next float up.

    A factor that has been rounded down would leave the largest of a block below the code that its scale is found by
    again.
    """
    quotient = torch.full_like(x, number) / x
    return (quotient.view(torch.int32) + 1).view(torch.float32)


def _code(c: Tensor, draw: Tensor, limit: float) -> Tensor:
    c = c + draw.float() * 2.0**-16
    return torch.where(c > 0.0, c, 0.0).clamp(max=limit).floor()  # NaN is 0


def encode_root(root: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
    """Square roots of the second moment, (blocks, 256), as codes linear in their own square root: code and scale."""
    scale = largest(root)
    factor = torch.where(scale > 0.0, _factor(255.0, square_root(scale)), 0.0)
    code = _code(square_root(root.abs()) * factor, draw, 255.0)
    return torch.where((root > 0.0) & (code == 0.0), 1.0, code), scale


def decode_root(code: Tensor, scale: Tensor) -> Tensor:
    """The square root of the second moment."""
    fraction = code * torch.tensor(1.0 / 255.0, dtype=torch.float32, device="cpu")
    return scale * (fraction * fraction)


def encode_first(m: Tensor, root: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
    """The first moment, (blocks, 256), as codes linear in its quotient with the decoded root: code and scale."""
    quotient = torch.where(root > 0.0, m / root, 0.0)
    scale = largest(quotient)
    scale = torch.where(scale < REST, 0.0, scale)
    factor = torch.where(scale > 0.0, _factor(127.0, scale), 0.0)
    code = _code(quotient.abs() * factor, draw, 127.0)
    return torch.where(quotient < 0.0, -code, code), scale


def decode_first(code: Tensor, scale: Tensor, root: Tensor) -> Tensor:
    """The first moment."""
    return code * torch.tensor(1.0 / 127.0, dtype=torch.float32, device="cpu") * scale * root


def half_root(root: Tensor, draw: Tensor) -> Tensor:
    """Square roots of the second moment as float16: their own square root, at least one unit where they are above 0."""
    fourth = square_root(root)
    fourth = torch.where((fourth > 0.0) & (fourth < HALF_UNIT), HALF_UNIT, fourth)
    return stochastic(fourth, draw, torch.float16)


def root_of_half(fourth: Tensor) -> Tensor:
    """The square root of the second moment."""
    return fourth.float() * fourth.float()


def half_first(m: Tensor, root: Tensor, draw: Tensor) -> Tensor:
    """The first moment as float16: its quotient with the decoded root, a finite one at most the largest number."""
    quotient = torch.where(root > 0.0, m / root, 0.0)
    limited = torch.where(quotient.isfinite(), quotient.clamp(-HALF_LARGEST, HALF_LARGEST), quotient)
    return stochastic(limited, draw, torch.float16)


class Stored:
    """A parameter, its gradient and its state as one-dimensional values in the order of the moments.

    Args:
        param, grad: the parameter and its gradient, of one shape.
        buffers: the bucket's flat ``exp_avg``, ``exp_avg_sq``, ``scales`` and ``residue``, the last two or None.
        start: where the parameter's segment starts in them.
        origin: the place that its first element's random numbers are drawn for.
        row: float64 (11): its `radam_fused.numerics.scalars.Row`.
        stochastic: whether the parameter itself is rounded so.
    """

    def __init__(
        self,
        param: Tensor,
        grad: Tensor,
        buffers: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
        start: int,
        origin: int,
        row: Tensor,
        stochastic: bool,
    ) -> None:
        exp_avg, exp_avg_sq, scales, residue = buffers
        count = param.numel()
        here = slice(start, start + count)
        self._strides = moment_strides(param)
        self._p, self._g = self._in_order(param), self._in_order(grad).float()
        self._m, self._v = exp_avg[here], exp_avg_sq[here]
        self._scales = None if scales is None else scales[:, start // BLOCK : -(-(start + count) // BLOCK)]
        self._residue = None if residue is None else residue[here]
        self._place = origin, count
        self._step, self._seed = row[Row._fields.index("step")].long(), row[Row._fields.index("seed")].long()
        self._row: Any = Row(*row.float())
        self._stochastic = stochastic

    def _in_order(self, tensor: Tensor) -> Tensor:
        ordered = torch.empty_strided(tensor.shape, self._strides, dtype=tensor.dtype, device=tensor.device)
        return ordered.copy_(tensor).as_strided((tensor.numel(),), (1,))

    def update(self, result: Tensor) -> None:
        """One step: of the state in place, of the parameter into another tensor of its shape."""
        row, skip = self._row, self._row.direction == SKIP
        x, compensation = self._value()
        m, v, d = advance(x, self._g, *self._moments(), row)
        held = skip | (row.direction == HOLD)
        if compensation is None:
            p, residue = self._stored_value(x - decrease(x, d, row))
        else:
            p, residue = self._compensated(compensation, decrease(x, d, row))
        p = torch.where(held, self._p, p)
        result.copy_(p.as_strided(result.shape, self._strides))
        if self._residue is not None and residue is not None:
            # A step that holds leaves a master copy as it has been read: a parameter's new value is taken over.
            kept = x if self._residue.dtype == torch.float32 else self._residue
            self._residue.copy_(torch.where(skip, self._residue, torch.where(held, kept, residue)))
        self._store_moments(m, v, skip)

    def _value(self) -> tuple[Tensor, Tensor | None]:
        """The parameter in float32, and under ``"kahan"`` its compensation."""
        if self._residue is None:
            return self._p.float(), None
        if self._residue.dtype == torch.float32:
            return from_master(self._p, self._residue), None
        if self._residue.dtype == torch.int16:
            return join(self._p, self._residue), None
        compensation = self._residue.float()
        return self._p.float() + compensation, compensation

    def _stored_value(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The parameter as it is stored, and what is kept beside it."""
        dtype = self._p.dtype
        if self._residue is not None:
            return to_parameter(x, dtype), x if self._residue.dtype == torch.float32 else low_bits(x)
        if self._stochastic and dtype != torch.float32:
            return stochastic(x, draws(*self._place, self._step, self._seed, PARAMETER), dtype), None
        return x.to(dtype), None

    def _compensated(self, compensation: Tensor, decrease: Tensor) -> tuple[Tensor, Tensor]:
        """Kahan's sum: the parameter takes what it can of the update, and the compensation the rest."""
        p, dtype = self._p.float(), self._p.dtype
        update = compensation - decrease
        after = (p + update).to(dtype)
        rest = torch.where(after.isinf(), 0.0, (p - after.float()) + update)  # of an infinite parameter there is none
        return after, rest.to(dtype)

    def _moments(self) -> tuple[Tensor, Tensor]:
        if self._scales is not None:
            root = decode_root(blocks(self._v.float()), self._scales[1][:, None])
            m = decode_first(blocks(self._m.float()), self._scales[0][:, None], root)
            return self._flat(m), self._flat(root * root)
        if self._v.dtype == torch.float16:
            root = root_of_half(self._v)
            return self._m.float() * root, root * root
        return self._m.float(), self._v.float()

    def _flat(self, values: Tensor) -> Tensor:
        return values.reshape(-1)[: self._place[1]]

    def _store_moments(self, m: Tensor, v: Tensor, skip: Tensor) -> None:
        dtype = self._m.dtype
        if dtype == torch.float32:
            self._m.copy_(torch.where(skip, self._m, m))
            self._v.copy_(torch.where(skip, self._v, v))
            return
        draw = draws(*self._place, self._step, self._seed, MOMENTS)
        if self._scales is not None:
            code, scale = encode_root(blocks(square_root(v)), blocks(draw))
            first, first_scale = encode_first(blocks(m), decode_root(code, scale), blocks(other(draw)))
            scales = torch.stack([first_scale.reshape(-1), scale.reshape(-1)])
            self._scales.copy_(torch.where(skip, self._scales, scales))
            stored = self._flat(first).to(torch.int8), self._flat(code).to(torch.uint8)
        elif dtype == torch.float16:
            second = half_root(square_root(v), draw)
            stored = half_first(m, root_of_half(second), other(draw)), second
        else:
            stored = stochastic(m, other(draw), dtype), stochastic(v, draw, dtype)
        self._m.copy_(torch.where(skip, self._m, stored[0]))
        self._v.copy_(torch.where(skip, self._v, stored[1]))
