"""The ``reference`` backend's step over low-precision state: moments, master weights and parameters in fewer bits.

What is stored is decoded to float32 by `radam_fused.numerics.quantization`, updated as full-precision state is, and
encoded again. Must match csrc/numerics/quantization.h and backends/triton/low_precision_kernel.py bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...numerics.layout import BLOCK, moment_strides
from ...numerics.philox import MOMENT_STREAM, PARAM_STREAM, random_bits, swap_bytes
from ...numerics.quantization import (
    blocks,
    decode_first,
    decode_half_root,
    decode_root,
    encode_first,
    encode_half_first,
    encode_half_root,
    encode_root,
    from_master,
    join,
    low_bits,
    round_stochastic,
    square_root,
    to_parameter,
)
from ...numerics.scalars import COLUMNS, NO_PARAM_UPDATE, SKIP_STEP, StepScalars
from ...numerics.state_format import StateBuffers
from .update import decrease, update_moments


class LowPrecisionParam:
    """A parameter, its gradient and its state as one-dimensional values in the order of the moments.

    Args:
        param, grad: the parameter and its gradient, of one shape.
        buffers: the state of the bucket.
        start: the index of the parameter's first element in the buffers.
        rng_offset: the index of its first random number.
        row: its `StepScalars`, float64 (11).
        stochastic: whether the parameter itself is rounded stochastically.
    """

    def __init__(
        self,
        param: Tensor,
        grad: Tensor,
        buffers: StateBuffers,
        start: int,
        rng_offset: int,
        row: Tensor,
        stochastic: bool,
    ) -> None:
        exp_avg, exp_avg_sq, scales, master = buffers
        count = param.numel()
        here = slice(start, start + count)
        self._strides = moment_strides(param)
        self._p, self._g = self._in_order(param), self._in_order(grad).float()
        self._m, self._v = exp_avg[here], exp_avg_sq[here]
        self._scales = None if scales is None else scales[:, start // BLOCK : -(-(start + count) // BLOCK)]
        self._master = None if master is None else master[here]
        self._place = rng_offset, count
        self._step, self._seed = row[COLUMNS["step"]].long(), row[COLUMNS["seed"]].long()
        self._row: Any = StepScalars(*row.float())
        self._stochastic = stochastic

    def _in_order(self, tensor: Tensor) -> Tensor:
        ordered = torch.empty_strided(tensor.shape, self._strides, dtype=tensor.dtype, device=tensor.device)
        return ordered.copy_(tensor).as_strided((tensor.numel(),), (1,))

    def update(self, result: Tensor) -> None:
        """One step: updates the state in place, and writes the parameter to another tensor of its shape."""
        row, skip = self._row, self._row.update_rule == SKIP_STEP
        x, compensation = self._value()
        m, v, d = update_moments(x, self._g, *self._moments(), row)
        held = skip | (row.update_rule == NO_PARAM_UPDATE)
        if compensation is None:
            p, master = self._stored_value(x - decrease(x, d, row))
        else:
            p, master = self._compensated(compensation, decrease(x, d, row))
        p = torch.where(held, self._p, p)
        result.copy_(p.as_strided(result.shape, self._strides))
        if self._master is not None and master is not None:
            # Without an update, an fp32 master weight takes over what user code has written into the parameter.
            unchanged = x if self._master.dtype == torch.float32 else self._master
            self._master.copy_(torch.where(skip, self._master, torch.where(held, unchanged, master)))
        self._store_moments(m, v, skip)

    def _value(self) -> tuple[Tensor, Tensor | None]:
        """The parameter in float32, and under ``"kahan"`` its compensation."""
        if self._master is None:
            return self._p.float(), None
        if self._master.dtype == torch.float32:
            return from_master(self._p, self._master), None
        if self._master.dtype == torch.int16:
            return join(self._p, self._master), None
        compensation = self._master.float()
        return self._p.float() + compensation, compensation

    def _stored_value(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The parameter as it is stored, and its master buffer."""
        dtype = self._p.dtype
        if self._master is not None:
            return to_parameter(x, dtype), x if self._master.dtype == torch.float32 else low_bits(x)
        if self._stochastic and dtype != torch.float32:
            return round_stochastic(x, random_bits(*self._place, self._step, self._seed, PARAM_STREAM), dtype), None
        return x.to(dtype), None

    def _compensated(self, compensation: Tensor, decrease: Tensor) -> tuple[Tensor, Tensor]:
        """Kahan's sum: the update is added to the parameter, and what rounding loses to the compensation."""
        p, dtype = self._p.float(), self._p.dtype
        update = compensation - decrease
        after = (p + update).to(dtype)
        rest = torch.where(after.isinf(), 0.0, (p - after.float()) + update)  # inf - inf would be NaN
        return after, rest.to(dtype)

    def _moments(self) -> tuple[Tensor, Tensor]:
        if self._scales is not None:
            code = blocks(self._v.float())
            root = decode_root(code, self._scales[1][:, None])
            m = decode_first(blocks(self._m.float()), self._scales[0][:, None], code)
            return self._flat(m), self._flat(root * root)
        if self._v.dtype == torch.float16:
            root = decode_half_root(self._v)
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
        rand16 = random_bits(*self._place, self._step, self._seed, MOMENT_STREAM)
        if self._scales is not None:
            code, scale = encode_root(blocks(square_root(v)), blocks(rand16))
            first, first_scale = encode_first(blocks(m), code, scale, blocks(swap_bytes(rand16)))
            scales = torch.stack([first_scale.reshape(-1), scale.reshape(-1)])
            self._scales.copy_(torch.where(skip, self._scales, scales))
            stored = self._flat(first).to(torch.int8), self._flat(code).to(torch.uint8)
        elif dtype == torch.float16:
            second = encode_half_root(square_root(v), rand16)
            stored = encode_half_first(m, decode_half_root(second), swap_bytes(rand16)), second
        else:
            stored = round_stochastic(m, swap_bytes(rand16), dtype), round_stochastic(v, rand16, dtype)
        self._m.copy_(torch.where(skip, self._m, stored[0]))
        self._v.copy_(torch.where(skip, self._v, stored[1]))
