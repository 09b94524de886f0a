"""One parameter's state in each state format, and the conversion from one to another (docs/precision.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..dtensor import is_fsdp1, is_sharded, local, part_of, wrapped
from ..numerics.layout import ALIGNMENT, is_dense
from ..numerics.quantization import (
    blocks,
    decode_first,
    decode_half_root,
    decode_root,
    encode_first,
    encode_half_first,
    encode_half_root,
    encode_root,
    join,
    low_bits,
    square_root,
)
from ..numerics.state_format import STATE_DTYPES
from . import old_codes

CODES = ("exp_avg_octave_code", "exp_avg_sq_octave_code", "exp_avg_scale", "exp_avg_sq_scale")
"""int8: the codes of both moments, and the scales of their blocks."""
HALVES = ("exp_avg_ratio", "fourth_root_exp_avg_sq")
"""float16: m / sqrt(v), and the square root of sqrt(v)."""
MOMENTS: dict[torch.dtype, tuple[str, ...]] = {
    **dict.fromkeys((*STATE_DTYPES, torch.float64), ("exp_avg", "exp_avg_sq")),
    torch.float16: HALVES,
    torch.int8: CODES,
}
"""Under which names ``optimizer.state`` holds moments of each dtype."""
RATIO = ("exp_avg_ratio", "root_exp_avg_sq")
"""What codes stood for, in float32: m / sqrt(v) and sqrt(v). Earlier checkpoints of DTensors hold these."""
OLD_HALVES = ("exp_avg", "root_exp_avg_sq")
"""float16 moments of earlier checkpoints: m, and sqrt(v). They are loaded, and never written."""
OLD_CODES = ("exp_avg_code", "exp_avg_sq_code", "exp_avg_scale", "exp_avg_sq_scale")
"""int8 moments of earlier checkpoints, in other codes (`old_codes`). They are loaded, and never written."""
MASTERS = {"master": torch.float32, "master_low": torch.int16, "compensation": None}
"""The names of master weights, or of what is stored of them in addition, and the dtype (None: the parameter's)."""
PORTABLE = (torch.int32, torch.float32)
"""The dtypes in which `portable` has the values of ``"split"`` and ``"kahan"``."""
WITH_ROOTS = (CODES, OLD_CODES, RATIO)
"""What `first_and_root` decodes, without a square and its root."""
NAMES = frozenset((*RATIO, *OLD_HALVES, *OLD_CODES, *MASTERS, *(name for names in MOMENTS.values() for name in names)))
"""Everything that some form has in an entry, beside ``step``."""
_NEAREST = 0x8000
"""The random number that makes stochastic rounding of codes one to nearest."""


def master_name(master: torch.dtype) -> str:
    """The name of a master buffer of this dtype."""
    return next((name for name, dtype in MASTERS.items() if dtype == master), "compensation")


def names_of(entry: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Which of the `MOMENTS` an entry holds, or None."""
    forms = dict.fromkeys((*MOMENTS.values(), RATIO, OLD_HALVES, OLD_CODES))
    return next((names for names in forms if all(name in entry for name in names)), None)


def decoded(entry: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Both moments of an entry, in float32 (float64 where they are so), in the shape of the first."""
    names = names_of(entry)
    assert names is not None
    if names in WITH_ROOTS:
        m, root = first_and_root(entry)
        return m, root.square()
    m, second = entry[names[0]], entry[names[1]]
    if names[1] == "exp_avg_sq":
        return (m, second) if m.dtype == torch.float64 or m.is_complex() else (m.float(), second.float())
    if names == OLD_HALVES:
        return m.float(), second.float().square()
    root = decode_half_root(second)
    return m.float() * root, root.square()


def first_and_root(entry: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Of an entry in one of the forms `WITH_ROOTS`, m and sqrt(v), in float32."""
    if RATIO[0] in entry:
        return entry[RATIO[0]] * entry[RATIO[1]], entry[RATIO[1]]
    code, sq_code, scale, sq_scale = (entry[name] for name in (CODES if CODES[0] in entry else OLD_CODES))
    sq_code, scale, sq_scale = sq_code.float(), of_elements(scale, code), of_elements(sq_scale, sq_code)
    if CODES[0] not in entry:
        return old_codes.decode(code.float(), sq_code, scale, sq_scale)
    return decode_first(code.float(), scale, sq_code), decode_root(sq_code, sq_scale)


def _in_memory_order(tensor: Tensor) -> Tensor:
    """The elements in the order of memory, or row-major where that has gaps: the order that blocks were made in."""
    return tensor.as_strided((tensor.numel(),), (1,)) if is_dense(tensor) else tensor.reshape(-1)


def portable(entry: Mapping[str, Any], param: Any) -> Mapping[str, Any]:
    """An entry of ``optimizer.state`` as a checkpoint holds it, under the same names, for ranks to spread over others.

    Blocks of codes are this rank's own, and another number of ranks cuts others, so each element of a DTensor gets the
    scale of its block; the codes beside them are copies, as a checkpoint that is loaded in place must fill both or
    neither. The bits of ``"split"`` become int32: neither gloo nor NCCL gathers 16-bit integers. FSDP1 gathers all of a
    parameter's state in one dtype, so state of several becomes float32, which holds the values of each.
    """
    if is_fsdp1(param):
        return _in_one_dtype(entry)
    if not is_sharded(param):
        return entry
    entry = dict(entry)
    if CODES[0] in entry and not is_sharded(entry[CODES[2]]):
        for code, scale in zip(CODES[:2], CODES[2:], strict=True):
            part = local(entry[code])
            entry[code] = wrapped(param, part.clone())
            entry[scale] = wrapped(param, of_elements(entry[scale], part))
    if "master_low" in entry:
        entry["master_low"] = wrapped(param, local(entry["master_low"]).int())
    return entry


def _in_one_dtype(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    tensors = {name: value for name, value in entry.items() if isinstance(value, Tensor) and value.dim() > 0}
    if len({value.dtype for value in tensors.values()}) <= 1:
        return entry
    if CODES[0] in tensors:
        pairs = zip(CODES[:2], CODES[2:], strict=True)
        tensors |= {scale: of_elements(tensors[scale], tensors[code]) for code, scale in pairs}
    return {**entry, **{name: value.float() for name, value in tensors.items()}}


def local_entry(entry: Mapping[str, Any], param: Any) -> Mapping[str, Any]:
    """Of a DTensor's entry this rank's part, be it in DTensors or in whole tensors; the opposite of `portable`.

    Scales of blocks stay as they are where the codes are this rank's own; where the codes are a whole parameter's they
    are spread over the elements first, as this rank's blocks are others.
    """
    code = entry.get(CODES[0], entry.get(OLD_CODES[0]))
    blocks = {name for name in CODES[2:] if name in entry and entry[name].shape != code.shape}
    if blocks and not is_sharded(code):
        entry = {**entry, **{name: of_elements(entry[name], code) for name in blocks}}
        blocks = set()
    return {
        name: part_of(param, value) if isinstance(value, Tensor) and name not in {"step", *blocks} else value
        for name, value in entry.items()
    }


def of_elements(scale: Tensor, code: Tensor) -> Tensor:
    """The scale of each code, in the shape of the codes: float32.

    Args:
        scale: one for each block of 256 codes in memory order, or one for each code already.
        code: the codes, whose shape and strides the result has.
    """
    if scale.shape == code.shape:
        return scale.to(code.device)
    flat = scale.to(code.device).repeat_interleave(ALIGNMENT)[: code.numel()]
    return flat.as_strided(code.shape, code.stride()) if is_dense(code) else flat.view(code.shape)


def encode(views: Mapping[str, Tensor], m: Tensor, v: Tensor) -> None:
    """Writes both moments into the views of an entry, rounded to nearest.

    Args:
        views: the moments of an entry, by the names of `MOMENTS`.
        m: the first moment, of the shape that the views have, in any floating dtype.
        v: the second.
    """
    if "exp_avg_sq" in views:
        views["exp_avg"].copy_(m)
        views["exp_avg_sq"].copy_(v)
        return
    if HALVES[0] in views:
        nearest = torch.full(m.shape, _NEAREST, dtype=torch.int64, device=m.device)
        fourth = encode_half_root(square_root(v.float()), nearest)
        views[HALVES[0]].copy_(encode_half_first(m.float(), decode_half_root(fourth), nearest))
        views[HALVES[1]].copy_(fourth)
        return
    encode_with_root(views, m, square_root(v.float()))


def encode_with_root(views: Mapping[str, Tensor], m: Tensor, root: Tensor) -> None:
    """Writes codes, rounded to nearest: what codes were decoded to gives the same ones, where the blocks are the same.

    Args:
        views: the codes of an entry.
        m: the first moment.
        root: the square root of the second, above or equal to 0.
    """
    first, second = _ordered(m, views), _ordered(root, views)
    nearest = torch.full_like(first, _NEAREST, dtype=torch.int64)
    roots, root_scale = encode_root(second.abs(), nearest)
    firsts, first_scale = encode_first(first, roots, root_scale, nearest)
    code, sq_code, scale, sq_scale = (views[name] for name in CODES)
    count = code.numel()
    _in_memory_order(sq_code).copy_(roots.reshape(-1)[:count])
    _in_memory_order(code).copy_(firsts.reshape(-1)[:count])
    scale.copy_(first_scale.reshape(-1))
    sq_scale.copy_(root_scale.reshape(-1))


def _ordered(values: Tensor, views: Mapping[str, Tensor]) -> Tensor:
    """Values of a moment in the blocks of an entry's codes."""
    code = views[CODES[0]]
    same = torch.empty_strided(code.shape, code.stride(), dtype=torch.float32, device=code.device)
    return blocks(_in_memory_order(same.copy_(values)))


def master_value(entry: Mapping[str, Any], param: Tensor) -> Tensor | None:
    """The parameter in float32 as an entry has it, or None where it keeps nothing.

    Args:
        entry: of ``optimizer.state``.
        param: the parameter as it is now: some state formats store only what it lacks.
    """
    if "master" in entry:
        return entry["master"].to(param.device)
    if "master_low" in entry and param.dtype == torch.bfloat16:
        return join(param.detach(), entry["master_low"].to(param.device))
    if "compensation" in entry:
        return param.detach().float() + entry["compensation"].to(param.device).float()
    return None


def write_master(master: Tensor, param: Tensor, entry: Mapping[str, Any] | None) -> None:
    """Writes the master weights of a parameter, or what is stored of them in addition to it.

    Args:
        master: a view of the bucket's master buffer, whose dtype determines the format.
        param: the parameter as it is now.
        entry: of ``optimizer.state``, in any state format, or None where there is only the parameter.
    """
    same = None if entry is None else entry.get(master_name(master.dtype))
    if same is not None and same.dtype in (master.dtype, *PORTABLE):
        master.copy_(same)
        return
    param = param.detach().to(master.device)
    exact = param.float()
    value = None if entry is None else master_value(entry, param)
    value = exact if value is None else value.float()
    if master.dtype == torch.float32:
        master.copy_(value)
    elif master.dtype == torch.int16:  # whether the parameter is already the value's, or will be loaded next
        master.copy_(low_bits(value))
    else:
        master.copy_(torch.where(value.isfinite() & exact.isfinite(), value - exact, 0.0))
