"""Compiles the Triton kernels ahead of time: ``compile_triton.py FOLDER '[["step", "fp32-fp32", 90, false], ...]'``.

A process of its own, as the tests' has Triton interpreting. Each job is (kernel, dtypes, architecture, whether
multiplications and additions may fuse); FOLDER receives a cubin and the PTX of each. The dtypes are those of parameter
and gradient for ``step`` and ``step_zero``, of the gradients for ``squares`` and of a learning rate for ``rows``. Those
of ``stored`` are of parameter, gradient and moments, and the master weights or ``stochastic``.
"""

import json
import sys
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from radam_fused.backends.triton.grad_norm import REGISTERS
from radam_fused.backends.triton.grad_norm_kernel import grad_norm_kernel
from radam_fused.backends.triton.low_precision_kernel import low_precision_step_kernel
from radam_fused.backends.triton.scalars import BLOCK, COUNT_BLOCK
from radam_fused.backends.triton.scalars_kernel import scalars_kernel
from radam_fused.backends.triton.step import (
    FULL_PRECISION_REGISTERS,
    LOW_PRECISION_REGISTERS,
    LOW_PRECISION_SLICE,
    SLICE,
    TILE,
    WARPS,
)
from radam_fused.backends.triton.step_kernel import step_kernel
from radam_fused.numerics.layout import PARTIAL_SUMS

STORED = {"fp32": tl.float32, "fp64": tl.float64, "fp16": tl.float16, "bf16": tl.int16}


def step(pair: str, zero_grads: bool = False):
    param, grad = pair.split("-")
    wide = param == "fp64"
    constants = {
        "PARAM": STORED[param],
        "GRAD": STORED[grad],
        "COMPUTE": tl.float64 if wide else tl.float32,
        "TILE": TILE,
        "SLICE": SLICE,
        "ZERO_GRADS": zero_grads,
    }
    moment = "*fp64" if wide else "*fp32"
    pointers = {
        "segments_ptr": "*i64",
        "tile_segment_ptr": "*i32",
        "strides_ptr": "*i64",
        "all_scalars_ptr": "*fp64",
        "exp_avg_ptr": moment,
        "exp_avg_sq_ptr": moment,
    }
    options = {} if wide else {"maxnreg": FULL_PRECISION_REGISTERS}
    return step_kernel, {**pointers, "tiles": "i32"}, constants, options


MOMENTS = {"fp32": ("*fp32", "*fp32"), "fp16": ("*fp16", "*fp16"), "bf16": ("*i16", "*i16"), "int8": ("*i8", "*u8")}


def stored(form: str, anywhere: bool = False):
    param, grad, state, kept = form.split("-")
    master = kept if kept in ("fp32", "split", "kahan") else None
    own = {"fp16": "*fp16", "bf16": "*i16"}.get(param)
    exp_avg, exp_avg_sq = MOMENTS[state]
    arguments = {
        "segments_ptr": "*i64",
        "tile_segment_ptr": "*i32",
        "strides_ptr": "*i64",
        "all_scalars_ptr": "*fp64",
        "exp_avg_ptr": exp_avg,
        "exp_avg_sq_ptr": exp_avg_sq,
        "tiles": "i32",
        "scales_ptr": "*fp32" if state == "int8" else None,
        "master_ptr": {"fp32": "*fp32", "split": "*i16", "kahan": own}.get(kept),
        "blocks": "i32",
    }
    constants = {
        "PARAM": STORED[param],
        "GRAD": STORED[grad],
        "MASTER": master,
        "STOCHASTIC": kept == "stochastic",
        "TILE": TILE,
        "SLICE": LOW_PRECISION_SLICE,
        "ZERO_GRADS": False,
        "ANYWHERE": anywhere,
    }
    missing = [name for name, kind in arguments.items() if kind is None]
    signature = {name: kind or "constexpr" for name, kind in arguments.items()}
    options = {"maxnreg": LOW_PRECISION_REGISTERS}
    return low_precision_step_kernel, signature, {**constants, **dict.fromkeys(missing)}, options


def squares(grad: str):
    pointers = {"segments_ptr": "*i64", "shares_ptr": "*i64", "strides_ptr": "*i64", "sums_ptr": "*fp64"}
    constants = {"GRAD": STORED[grad], "SUMS": PARTIAL_SUMS}
    return grad_norm_kernel, {**pointers, "tiles": "i64"}, constants, {"maxnreg": REGISTERS}


def rows(lr: str):
    signature = {
        "group_scalars_ptr": "*fp64",
        "sources_ptr": "*i64",
        "counted_ptr": "*fp32",
        "steps_ptr": "*fp32",
        "taken_ptr": "*fp64",
        "lr_ptr": f"*{lr}",
        "lr_stride": "i32",
        "partial_sums_ptr": "*fp64",
        "max_grad_norm": "fp64",
        "grad_scale_ptr": "*fp32",
        "found_inf_ptr": "*fp32",
        "scalars_ptr": "*fp64",
        "norm_ptr": "*fp64",
        "row_count": "i32",
        "segment_count": "i32",
        "buckets": "i32",
    }
    return scalars_kernel, signature, {"BLOCK": BLOCK, "COUNT_BLOCK": COUNT_BLOCK}, {}


KERNELS = {
    "step": step,
    "step_zero": lambda pair: step(pair, True),
    "stored": stored,
    "stored_anywhere": lambda form: stored(form, True),
    "squares": squares,
    "rows": rows,
}


def compile_kernel(name: str, dtypes: str, arch: int, fusion: bool):
    kernel, signature, constants, options = KERNELS[name](dtypes)
    # Allocations are 16-byte aligned; the launcher finds that out by itself when it specialises on real arguments.
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    source = ASTSource(kernel, {**signature, **dict.fromkeys(constants, "constexpr")}, constants, aligned)
    options = {"num_warps": WARPS, "enable_fp_fusion": fusion, **options}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for job in json.loads(sys.argv[2]):
        kernel = compile_kernel(*job)
        stem = "-".join(map(str, job))
        (folder / f"{stem}.cubin").write_bytes(kernel.asm["cubin"])
        (folder / f"{stem}.ptx").write_text(kernel.asm["ptx"])
