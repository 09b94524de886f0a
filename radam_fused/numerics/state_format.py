"""The formats in which a bucket's state may be stored: docs/precision.md.

``exp_avg`` and ``exp_avg_sq`` are float32 (float64 with float64 parameters), both bfloat16, both float16 (m / sqrt(v)
and the fourth root of v), or int8 and uint8 codes with ``scales``. Parameters of 16 bits may have a master
buffer: what is stored of a master copy in addition to them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .layout import ALIGNMENT, SMALL

HALF = (torch.float16, torch.bfloat16)
STATE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
MasterWeights = Literal["fp32", "split", "kahan"]
Rounding = Literal["nearest", "stochastic"]
MASTER_WEIGHTS: tuple[MasterWeights | None, ...] = (None, *get_args(MasterWeights))
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)


def second_dtype(state_dtype: torch.dtype) -> torch.dtype:
    """The dtype of ``exp_avg_sq`` beside an ``exp_avg`` of this dtype."""
    return torch.uint8 if state_dtype == torch.int8 else state_dtype


def master_dtype(master_weights: MasterWeights | None, param_dtype: torch.dtype) -> torch.dtype | None:
    """The dtype of a parameter's master buffer; None if it has none: with 32 bits or more, or no ``master_weights``."""
    if master_weights is None or param_dtype not in HALF:
        return None
    return {"fp32": torch.float32, "split": torch.int16, "kahan": param_dtype}[master_weights]


class BufferSpec(NamedTuple):
    """The dtype and shape of one flat buffer of a bucket's state."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize


class StateFormat(NamedTuple):
    """How an optimizer stores its state: `FusedRAdam`'s arguments."""

    state_dtype: torch.dtype = torch.float32
    master_weights: MasterWeights | None = None
    rounding: Rounding = "nearest"

    @property
    def stochastic(self) -> bool:
        """Whether 16-bit parameters are rounded stochastically."""
        return self.rounding == "stochastic"

    @property
    def uses_random_bits(self) -> bool:
        """Whether parameters or moments may be rounded stochastically."""
        return self.stochastic or self.state_dtype != torch.float32

    def moment_dtype(self, dtype: torch.dtype, numel: int) -> torch.dtype:
        """The dtype of a parameter's moments. Those of a small parameter never have 8 bits.

        Args:
            dtype: of the parameter; of a complex one, of its real part.
            numel: its number of real numbers; a DTensor's on all ranks, so that all ranks choose the same dtype.
        """
        if dtype == torch.float64:
            return torch.float64
        return torch.float32 if self.state_dtype == torch.int8 and numel < SMALL else self.state_dtype

    def master_dtype(self, dtype: torch.dtype) -> torch.dtype | None:
        """The dtype of the master buffer of parameters of this dtype, or None."""
        return master_dtype(self.master_weights, dtype)

    def buffers(self, dtype: torch.dtype, numel: int, length: int) -> dict[str, BufferSpec]:
        """The buffers of a bucket's state, by their names in `StateBuffers`; those that it does not have are left out.

        Args:
            dtype: of the parameters; of complex ones, of their real parts.
            numel: of one of them: see `moment_dtype`.
            length: elements of the flat index space (`radam_fused.numerics.layout.segment_starts`).
        """
        moments = self.moment_dtype(dtype, numel)
        specs = {
            "exp_avg": BufferSpec(moments, (length,)),
            "exp_avg_sq": BufferSpec(second_dtype(moments), (length,)),
        }
        if moments == torch.int8:
            specs["scales"] = BufferSpec(torch.float32, (2, length // ALIGNMENT))
        master = self.master_dtype(dtype)
        if master is not None:
            specs["master"] = BufferSpec(master, (length,))
        return specs

    def check(self) -> None:
        """Raises ValueError for a value that is not allowed, or that cannot be combined with another."""
        allowed: dict[str, tuple[Any, ...]] = {
            "state_dtype": STATE_DTYPES,
            "master_weights": MASTER_WEIGHTS,
            "rounding": ROUNDINGS,
        }
        for name, fine in allowed.items():
            value = getattr(self, name)
            if not any(value is one or (isinstance(value, str) and value == one) for one in fine):
                raise ValueError(f"{name} = {value!r}: must be one of {fine}")
        if self.stochastic and self.master_weights is not None:
            raise ValueError(
                f"rounding = 'stochastic': must be 'nearest' with master_weights = {self.master_weights!r}, which keep "
                "what rounding to nearest leaves"
            )

    def check_parameter(self, param: Tensor, name: str) -> None:
        """Raises ValueError for a parameter whose state cannot have this format."""
        if self.state_dtype != torch.float32 and param.dtype in (torch.float64, torch.complex128):
            raise ValueError(
                f"state_dtype = {self.state_dtype}: must be torch.float32 for {name}, which is {param.dtype} and "
                "computes in float64"
            )
        if self.master_weights == "split" and param.dtype == torch.float16:
            raise ValueError(
                f"master_weights = 'split': must be 'fp32' or 'kahan' for {name}, which is torch.float16: its 16 bits "
                "are not the upper half of a float32"
            )


FULL_PRECISION = StateFormat()
"""Moments in float32 (float64 for float64 parameters), and no master buffer."""


class StateBuffers(NamedTuple):
    """The flat buffers of a bucket's state: ``StateBuffers`` in csrc/numerics/state_format.h.

    Attributes:
        exp_avg, exp_avg_sq: the moments, in one of the `STATE_DTYPES` or float64.
        scales: of int8 moments, float32 (2, blocks).
        master: the master buffer: what is stored in addition to the parameters.
    """

    exp_avg: Tensor
    exp_avg_sq: Tensor
    scales: Tensor | None = None
    master: Tensor | None = None

    def in_full_precision(self, rounds_stochastically: bool) -> bool:
        """Whether a step updates the state as it is stored: no decoding, no master buffer, no random bits."""
        return (
            self.exp_avg.dtype in (torch.float32, torch.float64) and self.master is None and not rounds_stochastically
        )

    def master_format(self) -> str | None:
        """Which of the `MASTER_WEIGHTS` the master buffer holds, or None."""
        if self.master is None:
            return None
        return {torch.float32: "fp32", torch.int16: "split"}.get(self.master.dtype, "kahan")


def check_state_format(
    state: StateBuffers,
    params: Sequence[Tensor],
    segments: Tensor,
    stochastic: bool,
    rng_offsets: Tensor | None = None,
) -> None:
    """Raises if the buffers of a step do not fit one another.

    Raises:
        ValueError: buffers of other sizes, or state formats that exclude each other.
        RuntimeError: dtypes for which there is no state format.
    """
    exp_avg, exp_avg_sq, scales, master = state
    if exp_avg.dtype not in (*STATE_DTYPES, torch.float64) or exp_avg_sq.dtype != second_dtype(exp_avg.dtype):
        raise RuntimeError(f"no state format has moments of {exp_avg.dtype} and {exp_avg_sq.dtype}")
    if (scales is not None) != (exp_avg.dtype == torch.int8):
        raise ValueError("scales belong to int8 moments, and to no others")
    if scales is not None:
        expected = 2, exp_avg.numel() // ALIGNMENT
        if exp_avg.numel() % ALIGNMENT:
            raise ValueError(f"int8 moments must be whole blocks of {ALIGNMENT}: there are {exp_avg.numel()}")
        if (
            scales.dtype != torch.float32
            or tuple(scales.shape) != expected
            or not scales.is_contiguous()
            or scales.device != exp_avg.device
        ):
            raise ValueError(f"scales must be contiguous float32 of shape {expected}")
        if any(start % ALIGNMENT for start, _ in segments.tolist()):
            raise ValueError(f"segments of int8 moments must start at multiples of {ALIGNMENT}")
    if master is not None:
        dtype = params[0].dtype if params else torch.bfloat16
        allowed = {master_dtype(kind, dtype) for kind in MASTER_WEIGHTS if kind != "split" or dtype == torch.bfloat16}
        if master.dtype not in allowed - {None}:
            raise RuntimeError(f"no state format has a master buffer of {master.dtype} beside {dtype} parameters")
        if master.numel() != exp_avg.numel() or not master.is_contiguous() or master.device != exp_avg.device:
            raise ValueError("master must be a flat buffer of the size and device of exp_avg")
        if stochastic:
            raise ValueError("stochastic: parameters with a master buffer are rounded to nearest")
    if rng_offsets is not None and (rng_offsets.dtype != torch.int64 or rng_offsets.numel() != segments.shape[0]):
        raise ValueError("rng_offsets must be int64, one entry a segment")
