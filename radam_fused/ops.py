"""The operators: one schema, three implementations, chosen by name rather than by device.

``radam_fused::step_native`` is C++ and CUDA (csrc/, a library for either device), ``radam_fused::step_triton`` a Triton
kernel, and ``radam_fused::step_reference`` plain torch. Each updates the segments of one bucket in place:

======================  ====================================================================================
``params``              n tensors of one dtype and device: float32, float64, float16 or bfloat16
``grads``               the same shapes in any layout; float64 for float64 parameters, else any of the others
``exp_avg``             flat moments, float32 (float64 for float64 parameters)
``exp_avg_sq``          the same for the second moment
``segments``            int64 (n, 2) on the CPU: where each segment starts in the flat moments, in elements, and the
                        `radam_fused.layout.fingerprint` of the parameter that they were laid out for
``row_of``              int64 (n) on the CPU: which row each segment takes
``rows``                float64 (rows, 9) on the CPU: the scalars, in the order of `radam_fused.rows.Row`
======================  ====================================================================================

An operator raises before it has written anything, or does the whole step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .backends import cpu, cuda, reference, triton

_SCHEMA = (
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, "
    "Tensor segments, Tensor row_of, Tensor rows) -> ()"
)

_library = torch.library.Library("radam_fused", "FRAGMENT")


def _fake_step(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    segments: Tensor,
    row_of: Tensor,
    rows: Tensor,
) -> None:
    if not len(params) == len(grads) == segments.shape[0] == row_of.numel():
        raise ValueError("params, grads, segments and row_of must have one entry a segment")
    if len({tensor.device for tensor in (*params, *grads, exp_avg, exp_avg_sq)}) > 1:
        # A tensor of the meta device among real ones brings a real call here, which must not pass for a step.
        raise ValueError("params, grads, exp_avg and exp_avg_sq must be on one device")


for _name in ("step_native", "step_triton", "step_reference"):
    _library.define(_name + _SCHEMA, tags=torch.Tag.pt2_compliant_tag)
    torch.library.register_fake(f"radam_fused::{_name}", _fake_step, lib=_library)
_library.impl("step_reference", reference.step, "CompositeExplicitAutograd")
for _key in ("CPU", "CUDA"):
    _library.impl("step_triton", triton.step, _key)
cpu.load()
cuda.load()

STEP: dict[str, Callable[..., None]] = {
    "cuda": torch.ops.radam_fused.step_native.default,
    "cpu": torch.ops.radam_fused.step_native.default,
    "triton": torch.ops.radam_fused.step_triton.default,
    "reference": torch.ops.radam_fused.step_reference.default,
}
"""The operator that a backend's step calls."""
