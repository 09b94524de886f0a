"""The operators: three of them, in three implementations, chosen by name rather than by device.

``radam_fused::step_native`` is C++ and CUDA (csrc/, a library for either device), ``radam_fused::step_triton`` a Triton
kernel, and ``radam_fused::step_reference`` plain torch; likewise ``grad_norm_*`` and ``scalars_*``.

**step** updates the segments of one bucket in place:

======================  ====================================================================================
``params``              n tensors of one dtype and device: float32, float64, float16 or bfloat16
``grads``               the same shapes in any layout; float64 for float64 parameters, else any of the others
``exp_avg``             flat moments: one of `radam_fused.numerics.state_format.STATE_DTYPES`, or float64
``exp_avg_sq``          the same of the second moment; uint8 codes beside int8. In float16 both are as
                        docs/precision.md says: m / sqrt(v), and the fourth root of v
``segments``            int64 (n, 2) on the CPU: where each segment starts in the flat moments, in elements, and the
                        `radam_fused.numerics.layout.layout_hash` of the parameter that they were laid out for
``scalar_index``        int64 (n) on the CPU: which row of ``scalars`` each segment uses
``scalars``             float64 (k, 11), on the CPU or with the moments: as `numerics.scalars.StepScalars`
``zero_grads``          whether to leave zeros in the gradients, also of segments whose scalars skip the step
``scales``              float32 (2, length / 256) of int8 moments, whose segments start at multiples of 256; else None
``master``              flat, beside parameters of 16 bits: float32 master weights, the int16 that make one of a
                        bfloat16, or Kahan compensations of the parameters' dtype; or None
``stochastic``          whether 16-bit parameters without a master buffer are rounded stochastically
``rng_offsets``         int64 (n) on the CPU: the index of each segment's first random number, for stochastic
                        rounding of its state or parameter; None: its start in the flat moments
======================  ====================================================================================

It raises before it writes anything, or does the whole step. Starts are multiples of 64 in Triton and of 256 for
int8 moments; rng_offsets go from 0 up to 2^63 - 1 less the segment's elements, in Triton and CUDA as multiples of 64,
in CUDA below 2^38. All tensors are strided, and their storages hold all of their elements. The values of
``scalars`` are not checked.

**grad_norm** is the sum of the squares of ``grads`` (tensors of one dtype and device), as float64 (1, 1024): partial
sums that do not depend on how threads share the work. Each gradient, in the order of its own memory (row-major where it
has gaps), is cut into tiles of 1,024 elements; tiles are numbered over the whole list, and partial sum s takes the
tiles from ``s * tiles // 1024`` up to ``(s + 1) * tiles // 1024``. Its lane i adds the squares of element i of each
tile: of 16 tiles in float32 (of float64 gradients all in float64), in order, and what these runs give in float64. Then
it adds the second half of the 1,024 lanes to the first, and so on, until one is left.

**scalars** computes the scalars of a step on the device, all tensors on one, and counts the step:

======================  ====================================================================================
``group_scalars``       float64 (groups, 16): `radam_fused.numerics.scalars.GroupScalars` of every parameter group
``sources``             int64 (k, 2): each row's group, and a segment whose step count it uses
``counted``             float32 (n): 1 for the segments that take the step, 0 for the others
``steps``               float32 (n), written: ``taken`` rounded, as ``optimizer.state`` shows it. If it differs
                        from ``taken``, user code has written it, and it replaces the count
``taken``               float64 (n), written: how many steps each segment has taken; ``counted`` is added
``lr``                  float32 or float64 (groups), or None for the ones in ``group_scalars``
``partial_sums``        float64 (b, 1024), what **grad_norm** has found: a line a bucket and dtype; None: no clipping
``max_grad_norm``       the norm to which gradients are clipped, as by `torch.nn.utils.clip_grad_norm_`
``grad_scale``          float32, one element: the gradients carry this factor (`torch.amp.GradScaler`); or None
``found_inf``           float32, one element: if not 0, the step is skipped and not counted; or None
======================  ====================================================================================

It returns ``scalars`` for **step**, and the norm of the unscaled gradients as a float64 scalar, 0 without
``partial_sums``: the halves of each line of these added as above, then the lines in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..cpp_helpers import HAS_POINTER_PATH
from ..numerics.layout import PARTIAL_SUMS
from ..numerics.scalars import StepScalars
from . import native
from .native_norm import NativeNorm
from .operator_args import ScalarsArgs, StepArgs
from .reference.grad_norm import grad_norm as grad_norm_reference
from .reference.scalars import scalars as scalars_reference
from .reference.step import step as step_reference
from .triton.grad_norm import grad_norm as grad_norm_triton
from .triton.pointer_norm import PointerNorm
from .triton.pointer_scalars import PointerScalars
from .triton.pointer_step import PointerStep
from .triton.scalars import scalars as scalars_triton
from .triton.step import step as step_triton

_SCHEMAS = {
    "step": (
        "(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!) exp_avg, Tensor(d!) exp_avg_sq, "
        "Tensor segments, Tensor scalar_index, Tensor scalars, bool zero_grads=False, Tensor(e!)? scales=None, "
        "Tensor(f!)? master=None, bool stochastic=False, Tensor? rng_offsets=None) -> ()"
    ),
    "grad_norm": "(Tensor[] grads) -> Tensor",
    "scalars": (
        "(Tensor group_scalars, Tensor sources, Tensor counted, Tensor(a!) steps, Tensor(b!) taken, Tensor? lr, "
        "Tensor? partial_sums, "
        "float max_grad_norm, Tensor? grad_scale, Tensor? found_inf) -> (Tensor, Tensor)"
    ),
}

META = torch.device("meta")
_library = torch.library.Library("radam_fused", "FRAGMENT")


def _fake_step(args: StepArgs) -> None:
    params, grads, exp_avg, segments, scalar_index = (
        args.params,
        args.grads,
        args.exp_avg,
        args.segments,
        args.scalar_index,
    )
    if not len(params) == len(grads) == segments.shape[0] == scalar_index.numel():
        raise ValueError("params, grads, segments and scalar_index must have one entry a segment")
    device = exp_avg.device
    lists = {f"{name}[{i}]": t for name, ts in (("params", params), ("grads", grads)) for i, t in enumerate(ts)}
    _check_devices(device, **lists, exp_avg_sq=args.exp_avg_sq, scales=args.scales, master=args.master)
    host = torch.device("cpu")
    for name, table in (
        ("segments", segments),
        ("scalar_index", scalar_index),
        ("rng_offsets", args.rng_offsets),
        ("scalars", args.scalars),
    ):
        if table is not None and table.device not in (
            (host, device) if name == "scalars" or device == META else (host,)
        ):
            raise ValueError(
                f"{name} is on {table.device}: must be on the CPU{' or with exp_avg' * (name == 'scalars')}"
            )


def _check_devices(device: torch.device, **tensors: Tensor | None) -> None:
    """Raises for several devices: for one meta tensor torch would call the fake kernel, which does nothing."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}: must be on one device with the others, {device}")


def _fake_grad_norm(grads: list[Tensor]) -> Tensor:
    _check_devices(grads[0].device, **{f"grads[{i}]": grad for i, grad in enumerate(grads)})
    return grads[0].new_empty(1, PARTIAL_SUMS, dtype=torch.float64)


def _fake_scalars(args: ScalarsArgs) -> tuple[Tensor, Tensor]:
    tensors = {name: value for name, value in args._asdict().items() if name != "max_grad_norm"}
    _check_devices(args.group_scalars.device, **tensors)
    return args.group_scalars.new_empty(args.sources.shape[0], len(StepScalars._fields)), args.group_scalars.new_empty(
        ()
    )


# The CUDA step over a pointer table (TensorPair in csrc/args/step_args.h) that radam_fused._C.read_pairs has filled in.
# On the CPU that step is no operator. A dispatch mode or a profiler cannot see which tensors it writes, so it is called
# only while none is active (step/pointer_table.py).
_library.define(
    "step_from_pointers(Tensor pointer_table, int param_dtype, Tensor(a!) exp_avg, Tensor(b!) exp_avg_sq, "
    "Tensor segments, Tensor scalar_index, Tensor scalars, bool zero_grads, Tensor(c!)? scales, Tensor(d!)? master, "
    "bool stochastic, Tensor? rng_offsets) -> ()"
)


def _from_flat(operator: Callable[..., Any], args_type: Callable[..., Any] | None) -> Callable[..., Any]:
    """Lets torch.library, which passes arguments one by one, call what takes a `StepArgs` or `ScalarsArgs`."""
    return operator if args_type is None else lambda *args, **kwargs: operator(args_type(*args, **kwargs))


def _refuse_lazy(*_: Any, **__: Any) -> None:
    """In place of torch's kernels for lazy negatives and conjugates, which call an operator on copies, then fail."""
    raise RuntimeError(
        "radam_fused: a tensor of an operator that writes is a lazy negative or conjugate (is_neg(), is_conj()): "
        "must be one with these values, as resolve_neg() and resolve_conj() return it"
    )


_ARGS = {"step": StepArgs, "grad_norm": None, "scalars": ScalarsArgs}
_FAKES: dict[str, Callable[..., Any]] = {"step": _fake_step, "grad_norm": _fake_grad_norm, "scalars": _fake_scalars}
_PYTHON: dict[str, dict[str, Callable[..., Any]]] = {
    "reference": {"step": step_reference, "grad_norm": grad_norm_reference, "scalars": scalars_reference},
    "triton": {"step": step_triton, "grad_norm": grad_norm_triton, "scalars": scalars_triton},
}

for _kind, _schema in _SCHEMAS.items():
    for _implementation in ("native", "triton", "reference"):
        _name = f"{_kind}_{_implementation}"
        _library.define(_name + _schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.register_fake(f"radam_fused::{_name}", _from_flat(_FAKES[_kind], _ARGS[_kind]), lib=_library)
    _library.impl(
        f"{_kind}_reference", _from_flat(_PYTHON["reference"][_kind], _ARGS[_kind]), "CompositeExplicitAutograd"
    )
    for _key in ("CPU", "CUDA"):
        _library.impl(f"{_kind}_triton", _from_flat(_PYTHON["triton"][_kind], _ARGS[_kind]), _key)
for _implementation in ("native", "triton", "reference"):
    for _key in ("Negative", "Conjugate"):
        for _kind in ("step", "scalars"):
            _library.impl(f"{_kind}_{_implementation}", _refuse_lazy, _key)
native.load_cpu()
native.load_cuda()


class Operators(NamedTuple):
    """The operators of one implementation."""

    step: Callable[..., None]
    grad_norm: Callable[[list[Tensor]], Tensor]
    scalars: Callable[..., tuple[Tensor, Tensor]]
    has_pointer_path: bool = False
    """Whether a step may take the pointer path: `radam_fused.step.pointer_table`."""
    pointer_step: type[PointerStep] | None = None
    """Takes the steps of a plan on the pointer path; None where one call of C does (``step_from_pointers``)."""
    pointer_norm: type[NativeNorm | PointerNorm] | None = None
    """Adds the squares of a plan's gradients on the pointer path; None where **grad_norm** always takes their list."""
    pointer_scalars: type[PointerScalars] | None = None
    """Computes the scalars of a plan's clipped steps without the dispatcher; None where **scalars** always does."""
    backend: str = ""
    """The backend's name: ``cpu`` and ``cuda`` have the same operators."""


def _operators(implementation: str, backend: str, pointers: bool = False) -> Operators:
    operators = Operators(*(getattr(torch.ops.radam_fused, f"{kind}_{implementation}").default for kind in _SCHEMAS))
    return operators._replace(has_pointer_path=pointers and HAS_POINTER_PATH, backend=backend)


OPERATORS: dict[str, Operators] = {
    "cuda": _operators("native", "cuda", pointers=True),
    "cpu": _operators("native", "cpu", pointers=True)._replace(pointer_norm=NativeNorm),
    "triton": _operators("triton", "triton", pointers=True)._replace(
        pointer_step=PointerStep, pointer_norm=PointerNorm, pointer_scalars=PointerScalars
    ),
    "reference": _operators("reference", "reference"),
}
"""By backend, the operators that its step calls."""
