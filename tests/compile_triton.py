"""Compiles the Triton kernel ahead of time: ``compile_triton.py FOLDER '[["fp32-fp32", 90, false], ...]'``.

A process of its own, as the tests' has Triton interpreting. Each job is (parameter and gradient dtypes, architecture,
whether multiplications and additions may fuse); FOLDER receives a cubin and the PTX of each.
"""

import json
import sys
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from radam_fused.backends.triton import SLICE, TILE, WARPS
from radam_fused.backends.triton_kernel import step_kernel

STORED = {"fp32": tl.float32, "fp64": tl.float64, "fp16": tl.float16, "bf16": tl.int16}
POINTERS = ("segments_ptr", "tile_segment_ptr", "walks_ptr", "rows_ptr", "exp_avg_ptr", "exp_avg_sq_ptr")


def compile_kernel(pair: str, arch: int, fusion: bool):
    param, grad = pair.split("-")
    wide = param == "fp64"
    constants = {
        "PARAM": STORED[param],
        "GRAD": STORED[grad],
        "COMPUTE": tl.float64 if wide else tl.float32,
        "TILE": TILE,
        "SLICE": SLICE,
    }
    moment = "*fp64" if wide else "*fp32"
    types = ("*i64", "*i32", "*i64", "*fp64", moment, moment)
    signature = {
        **dict(zip(POINTERS, types, strict=True)),
        "tiles": "i32",
        **dict.fromkeys(constants, "constexpr"),
    }
    # Allocations are 16-byte aligned; the launcher finds that out by itself when it specialises on real arguments.
    aligned = {(index,): [["tt.divisibility", 16]] for index in range(len(POINTERS))}
    source = ASTSource(step_kernel, signature, constants, aligned)
    options = {"num_warps": WARPS, "enable_fp_fusion": fusion}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for job in json.loads(sys.argv[2]):
        kernel = compile_kernel(*job)
        stem = "-".join(map(str, job))
        (folder / f"{stem}.cubin").write_bytes(kernel.asm["cubin"])
        (folder / f"{stem}.ptx").write_text(kernel.asm["ptx"])
