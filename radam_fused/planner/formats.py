"""The combinations of options that change bytes: which are allowed for some dtypes, and which to prefer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any, NamedTuple

import torch

from ..numerics.state_format import HALF, MASTER_WEIGHTS, ROUNDINGS, STATE_DTYPES, MasterWeights, StateFormat
from ..options import check_offload


class Format(NamedTuple):
    """How the state is stored, and whether in the host's memory."""

    storage: StateFormat
    offload: bool

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of `FusedRAdam` that ask for it, without those at their defaults."""
        defaults = StateFormat._field_defaults
        given = {name: value for name, value in self.storage._asdict().items() if value != defaults[name]}
        return {**given, "offload": True} if self.offload else given


def allowed(dtypes: Iterable[torch.dtype]) -> Iterator[Format]:
    """Every format that parameters of these dtypes may have, but those that change nothing for them."""
    dtypes = set(dtypes)
    samples = [torch.empty(0, dtype=dtype, device="meta") for dtype in dtypes]
    every = (StateFormat(*options) for options in product(STATE_DTYPES, MASTER_WEIGHTS, ROUNDINGS))
    for offload, storage in product((False, True), every):
        if dtypes.isdisjoint(HALF) and storage != StateFormat(storage.state_dtype):
            continue  # no parameter of 16 bits has master weights, or is rounded
        try:
            storage.check()
            for sample in samples:
                storage.check_parameter(sample, "a parameter")
            if offload:
                check_offload("auto", False, False, storage.state_dtype)
        except ValueError:
            continue
        yield Format(storage, offload)


_MASTERS: dict[torch.dtype, tuple[MasterWeights, str]] = {
    torch.bfloat16: ("split", "the same bits as with float32 master weights, at 2 bytes a parameter less"),
    torch.float16: ("kahan", "updates too small for 16 bits are kept, with 2 bytes a parameter"),
}
"""The master weights to begin with, and why; docs/precision.md has the losses and the cosines."""


def preferred(dtype: torch.dtype) -> Iterator[tuple[Format, str]]:
    """The formats to take for parameters of a dtype: the first one that fits, with the reason.

    From the most precise one on (docs/precision.md, "Learning"), and at the end those in the host's memory, which the
    bus makes slow.
    """
    master: MasterWeights | None = None
    why = "the same moments as torch.optim.RAdam's"
    if dtype in _MASTERS:
        master, why = _MASTERS[dtype]
    full = StateFormat(master_weights=master)
    yield Format(full, False), why
    narrow = [
        (StateFormat(torch.bfloat16, master), "bfloat16 moments are the most precise that fit"),
        (StateFormat(torch.int8, master), "int8 moments are the most precise that fit"),
    ]
    if master is not None:
        without = StateFormat(torch.int8, None, "stochastic")
        narrow.append((without, "master weights do not fit; stochastic rounding is exact in the mean"))
    for storage, why in narrow:
        yield Format(storage, False), why
    yield Format(full, True), "no state fits into the GPU's memory; the bus makes the step slow"
