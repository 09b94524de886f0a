"""`plan`: bytes of weights, gradients and state on a GPU, and a lower bound of a step, for every format of the state.

Bytes are those of the buffers that a bucket allocates (`StateFormat.buffers`), with the alignment of its segments
(`segment_starts`). Times are bytes divided by a bandwidth: a lower bound, and no measurement.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..dtensor import is_sharded, local
from ..numerics.layout import as_real, segment_starts, whole_numel
from ..numerics.state_format import StateFormat
from ..numerics.tensor_checks import PARAMETER_DTYPES, check_parameter, may_step
from .formats import Format, allowed, preferred
from .table import table

BANDWIDTH = 4.8e12
"""Bytes a second of a GPU's memory: the data sheet's number for an H200."""
BUS_BANDWIDTH = 64e9
"""Bytes a second between a GPU and its host, one way: the specification's number for 16 lanes of PCIe 5."""
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in PARAMETER_DTYPES}
DTYPES |= {"fp32": torch.float32, "fp64": torch.float64, "fp16": torch.float16, "bf16": torch.bfloat16}
"""The dtypes of parameters by their names."""


class Choice(NamedTuple):
    """One combination of options, and what it takes on the GPU that holds the most."""

    options: dict[str, Any]
    """The arguments of `FusedRAdam` that differ from their defaults."""
    weights: int
    """Bytes of the parameters in the GPU's memory, frozen ones included."""
    gradients: int
    """Bytes of the gradients there, in the parameters' dtypes."""
    state: int
    """Bytes of moments and master weights there, padding included."""
    host_state: int
    """Bytes of them in the host's memory for this GPU, with ``offload``."""
    step_bytes: int
    """Bytes that a step reads and writes at least: in the GPU's memory, or with ``offload`` over the bus."""
    milliseconds: float
    """A lower bound of a step: its bytes over the bandwidth. Not a measurement."""
    bytes_per_parameter: float
    """Of weights, gradients and state, on GPU and host together, for each trained parameter."""
    why: str = ""
    """Why this is the recommended one; empty for the others."""

    @property
    def total(self) -> int:
        """Bytes of weights, gradients and state in the GPU's memory."""
        return self.weights + self.gradients + self.state


class MemoryPlan(tuple[Choice, ...]):
    """The choices that `plan` found. ``str()`` makes the table that ``python -m radam_fused plan`` prints.

    Attributes:
        parameters: how many real numbers are trained, on all GPUs together.
        dtypes: theirs; first that of most of them.
        gpus, bandwidth, bus_bandwidth, memory: as given to `plan`.
        flatten_padding: bytes that ``flatten=True`` adds to weights and gradients of a GPU, to align its segments.
    """

    parameters: int
    dtypes: tuple[torch.dtype, ...]
    gpus: int
    bandwidth: float
    bus_bandwidth: float
    memory: float | None
    flatten_padding: int

    @property
    def recommended(self) -> Choice | None:
        """The choice to begin with; None if none fits into ``memory``."""
        return next((choice for choice in self if choice.why), None)

    def __str__(self) -> str:
        return table(self)


class _Held(NamedTuple):
    """What the first rank holds of a parameter: no rank holds more."""

    dtype: torch.dtype
    """Of its real numbers."""
    whole: int
    """The real numbers of the parameter on all ranks."""
    length: int
    """Those that the rank holds."""


def plan(
    model_or_params: nn.Module | Iterable[Tensor] | float,
    *,
    dtype: torch.dtype | str | None = None,
    gpus: int = 1,
    bandwidth: float = BANDWIDTH,
    bus_bandwidth: float = BUS_BANDWIDTH,
    memory: float | None = None,
) -> MemoryPlan:
    """What weights, gradients and optimizer state take with every combination of options that is allowed.

    Args:
        model_or_params: a model, its parameters, or how many it has. A model on the meta device takes no memory.
        dtype: of the parameters where their number is given, as ``"bf16"``; bfloat16 by default.
        gpus: over how many GPUs FSDP2 shards weights, gradients and state. Under DistributedDataParallel every GPU
            holds all of them: 1.
        bandwidth: bytes a second of a GPU's memory; by default the data sheet's of an H200.
        bus_bandwidth: bytes a second between a GPU and its host, one way; by default of 16 lanes of PCIe 5.
        memory: bytes of a GPU that weights, gradients and state may take; activations need the rest.

    Returns:
        The choices. ``recommended`` is the one to begin with: the most precise that fits into ``memory``.

    Raises:
        TypeError, ValueError: an argument or a parameter that is not allowed.
    """
    if isinstance(gpus, bool) or not isinstance(gpus, int) or gpus < 1:
        raise ValueError(f"gpus = {gpus!r}: must be a whole number, at least 1")
    bandwidth = _positive("bandwidth", bandwidth)
    bus_bandwidth = _positive("bus_bandwidth", bus_bandwidth)
    memory = None if memory is None else _positive("memory", memory)
    params = _parameters(model_or_params, dtype)
    held = [_held(p, f"parameter {index}", gpus) for index, p in enumerate(params) if may_step(p)]
    if not held:
        raise ValueError("model_or_params: no parameter requires a gradient, so there is no state to plan")
    frozen = sum(-(-local(p).nbytes // gpus) for p in params if not may_step(p))
    sizes: dict[torch.dtype, int] = {}
    for one in held:
        sizes[one.dtype] = sizes.get(one.dtype, 0) + one.whole
    dtypes = tuple(sorted(sizes, key=sizes.__getitem__, reverse=True))
    choices = {format: _choice(format, held, frozen, bandwidth, bus_bandwidth) for format in allowed(sizes)}
    for format, why in preferred(dtypes[0]):
        if format in choices and (memory is None or choices[format].total <= memory):
            choices[format] = choices[format]._replace(why=why)
            break
    made = MemoryPlan(choices.values())
    made.parameters, made.dtypes, made.gpus, made.memory = sum(sizes.values()), dtypes, gpus, memory
    made.bandwidth, made.bus_bandwidth = bandwidth, bus_bandwidth
    made.flatten_padding = 2 * _padding(StateFormat(), held)
    return made


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} = {value!r}: must be a number, finite and above 0")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} = {value!r}: must be finite and above 0")
    return float(value)


def _parameters(model_or_params: Any, dtype: torch.dtype | str | None) -> list[Tensor]:
    """The parameters of a model, each once; one for all of them where only their number is given."""
    if isinstance(model_or_params, (int, float)):
        count = int(_positive("model_or_params", model_or_params))
        known = DTYPES.get("bfloat16" if dtype is None else str(dtype).removeprefix("torch."))
        if known is None:
            raise ValueError(f"dtype = {dtype!r}: must be one of {tuple(DTYPES)}")
        return [torch.empty(count, dtype=known, device="meta", requires_grad=True)]
    if dtype is not None:
        raise ValueError(f"dtype = {dtype!r}: must be None for a model, whose parameters have theirs")
    params = model_or_params.parameters() if isinstance(model_or_params, nn.Module) else model_or_params
    if not isinstance(params, Iterable):
        raise TypeError(f"model_or_params = {params!r}: must be a model, parameters, or their number")
    found = list(dict.fromkeys(params))
    for p in found:
        if not isinstance(p, Tensor):
            raise TypeError(f"model_or_params: holds a {type(p).__name__}: must hold tensors alone")
    return found


def _held(param: Tensor, name: str, gpus: int) -> _Held:
    """What the first rank holds of a parameter: FSDP2 gives it ``ceil(rows / gpus)`` rows."""
    check_parameter(param, name)
    if gpus > 1 and is_sharded(param):
        raise ValueError(f"gpus = {gpus!r}: must be 1, as {name} is a DTensor, which is sharded already")
    tensor = as_real(param)
    length = tensor.numel()
    if gpus > 1 and param.dim() > 0:
        length = -(-param.shape[0] // gpus) * math.prod(tensor.shape[1:])
    return _Held(tensor.dtype, whole_numel(param), length)


def _buckets(storage: StateFormat, held: Sequence[_Held]) -> list[tuple[torch.dtype, int, list[int], int]]:
    """The buckets of these parameters: the dtype, the size of one, each length, and that of the whole with padding."""
    kinds: dict[Any, list[_Held]] = {}
    for each in held:
        kinds.setdefault((each.dtype, storage.moment_dtype(each.dtype, each.whole)), []).append(each)
    found = []
    for (dtype, moments), members in kinds.items():
        lengths = [member.length for member in members]
        _, padded = segment_starts(lengths, coded=moments == torch.int8)
        found.append((dtype, members[0].whole, lengths, padded))
    return found


def _padding(storage: StateFormat, held: Sequence[_Held]) -> int:
    """Bytes that a flat buffer of the parameters has between and behind its segments."""
    return sum((padded - sum(lengths)) * dtype.itemsize for dtype, _, lengths, padded in _buckets(storage, held))


def _choice(format: Format, held: Sequence[_Held], frozen: int, bandwidth: float, bus_bandwidth: float) -> Choice:
    state = trained = 0
    for dtype, numel, lengths, padded in _buckets(format.storage, held):
        state += sum(spec.nbytes for spec in format.storage.buffers(dtype, numel, padded).values())
        trained += sum(lengths) * dtype.itemsize
    # A step reads parameters, gradients and state, and writes parameters and state. With offload, parameters and
    # gradients travel to the host and parameters back: a bus carries both directions at once.
    moved = 3 * trained if format.offload else 3 * trained + 2 * state
    seconds = 2 * trained / bus_bandwidth if format.offload else moved / bandwidth
    return Choice(
        format.options,
        weights=trained + frozen,
        gradients=trained,
        state=0 if format.offload else state,
        host_state=state if format.offload else 0,
        step_bytes=moved,
        milliseconds=1e3 * seconds,
        bytes_per_parameter=(2 * trained + state) / max(sum(each.length for each in held), 1),
    )
