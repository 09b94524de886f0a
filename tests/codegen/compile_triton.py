"""Compiles the Triton kernels ahead of time: ``compile_triton.py FOLDER '[["step", "fp32-fp32", 90, false], ...]'``.

A process of its own, as the tests' has Triton interpreting. Each job is (kernel, dtypes, architecture, whether
multiplications and additions may fuse). An architecture is a number for NVIDIA, 90 for sm_90, and a name for AMD, as
``"gfx942"``. FOLDER receives a cubin and the PTX of each, of AMD's the assembly (.amdgcn) and LLVM's IR (.llir).

The dtypes are those of parameter and gradient for ``step`` and ``step_zero``, of the gradients for ``squares`` and of a
learning rate for ``rows``. Those of ``stored`` are of parameter, gradient and moments, and the master weights or
``stochastic``.
"""

import json
import sys
from pathlib import Path

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from radam_fused.backends.triton.grad_norm import registers
from radam_fused.backends.triton.grad_norm_kernel import grad_norm_kernel
from radam_fused.backends.triton.low_precision_kernel import low_precision_step_kernel
from radam_fused.backends.triton.scalars import BLOCK, COUNT_BLOCK, REGISTERS
from radam_fused.backends.triton.scalars_kernel import scalars_kernel
from radam_fused.backends.triton.step import (
    LOW_PRECISION_SLICE,
    SLICE,
    TILE,
    WARPS,
    full_precision_registers,
    low_precision_registers,
)
from radam_fused.backends.triton.step_kernel import step_kernel
from radam_fused.numerics.layout import PARTIAL_SUMS

STORED = {"fp32": tl.float32, "fp64": tl.float64, "fp16": tl.float16, "bf16": tl.int16}


def step(pair: str, arch: int | str, zero_grads: bool = False):
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
    dtypes = {torch.float16} if "fp16" in pair else set()
    options = {} if wide else {"maxnreg": full_precision_registers(dtypes, arch if isinstance(arch, int) else 0)}
    return step_kernel, {**pointers, "tiles": "i32"}, constants, options


MOMENTS = {"fp32": ("*fp32", "*fp32"), "fp16": ("*fp16", "*fp16"), "bf16": ("*i16", "*i16"), "int8": ("*i8", "*u8")}


def stored(form: str, arch: int | str, anywhere: bool = False):
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
    moments = torch.int8 if state == "int8" else torch.float32
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[param]
    number = arch if isinstance(arch, int) else 0
    limit = low_precision_registers(dtype, moments, master, kept == "stochastic", number)
    return low_precision_step_kernel, signature, {**constants, **dict.fromkeys(missing)}, {"maxnreg": limit}


def squares(grad: str, arch: int | str):
    pointers = {"segments_ptr": "*i64", "shares_ptr": "*i64", "strides_ptr": "*i64", "sums_ptr": "*fp64"}
    constants = {"GRAD": STORED[grad], "SUMS": PARTIAL_SUMS, "SKIP_EMPTY": False}
    return (
        grad_norm_kernel,
        {**pointers, "tiles": "i64"},
        constants,
        {"maxnreg": registers(arch if isinstance(arch, int) else 0)},
    )


def rows(lr: str, arch: int | str):
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
    return scalars_kernel, signature, {"BLOCK": BLOCK, "COUNT_BLOCK": COUNT_BLOCK}, {"maxnreg": REGISTERS}


KERNELS = {
    "step": step,
    "step_zero": lambda pair, arch: step(pair, arch, True),
    "stored": stored,
    "stored_anywhere": lambda form, arch: stored(form, arch, True),
    "squares": squares,
    "rows": rows,
}


def target_of(arch: int | str) -> GPUTarget:
    if isinstance(arch, int):
        return GPUTarget("cuda", arch, 32)
    return GPUTarget("hip", arch, 64 if arch.startswith("gfx9") else 32)


def compile_kernel(name: str, dtypes: str, arch: int | str, fusion: bool):
    kernel, signature, constants, options = KERNELS[name](dtypes, arch)
    target = target_of(arch)
    if target.backend != "cuda":  # `register_limit` and `warp_size` of radam_fused.backends.triton.compat
        options = {}
        if kernel is step_kernel:
            constants["SLICE"] = SLICE * target.warp_size // 32
    # Allocations are 16-byte aligned; the launcher finds that out by itself when it specialises on real arguments.
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    source = ASTSource(kernel, {**signature, **dict.fromkeys(constants, "constexpr")}, constants, aligned)
    options = {"num_warps": WARPS, "enable_fp_fusion": fusion, **options}
    return triton.compile(source, target=target, options=options)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for job in json.loads(sys.argv[2]):
        kernel = compile_kernel(*job)
        stem = "-".join(map(str, job))
        for kind in ("cubin", "ptx", "amdgcn", "llir"):
            if kind in kernel.asm:
                code = kernel.asm[kind]
                (folder / f"{stem}.{kind}").write_bytes(code if isinstance(code, bytes) else code.encode())
