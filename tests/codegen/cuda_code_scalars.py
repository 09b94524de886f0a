"""The machine code of the kernels of grad_norm and scalars: a part of tests/codegen/cuda_code.py.

The first has to have several 128-bit loads on their way before it uses one, in its loop over whole tiles; both must not
spill, nor fuse a multiplication with an addition.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby

import cuda_budgets
from cuda_sass import ARCHITECTURES, Code, compiled, control, with_code

SQUARES, ROWS = 8, 1
"""Kernels: four dtypes with arguments of 4 KB or 32 KB; and one."""
SQUARES_LIMIT = 65536 // (6 * 128) // 8 * 8
"""Registers: 6 blocks an SM (csrc/cuda/grad_norm_kernel.cu)."""
ROWS_LIMIT = 65536 // 1024
"""A block of 1,024 threads (csrc/cuda/scalars_kernel.cu)."""
IN_FLIGHT = {(grad, arch): 6 for grad in ("fp16", "bf16") for arch in (80, 89)}
"""8 for the others."""
FLOAT64_ADDS = 5 * 8 + 10
"""A thread's 8 lanes at each place where a run may end, and the tree."""
LOAD = "LDG.E.128.CONSTANT"
BYTES = {"fp64": 8, "fp32": 4, "fp16": 2, "bf16": 2}
"""Of an element; a thread's share of the tiles in flight is 128 bytes."""
DTYPES = {"Id": "fp64", "If": "fp32", "INS_7float16E": "fp16", "INS_8bfloat16E": "bf16"}


def in_flight(code: Code) -> int:
    """The most wide loads with no square between them."""
    heavy = [name for name in code.instructions if name == LOAD or name.startswith(("DMUL", "FMUL"))]
    return max((len([*run]) for load, run in groupby(heavy, LOAD.__eq__) if load), default=0)


def problems_of_squares(code: Code) -> list[str]:
    found = code.problems(SQUARES_LIMIT)
    wanted = IN_FLIGHT.get((dtype_of(code), code.arch), 8)
    if in_flight(code) < wanted:
        found.append(f"at most {in_flight(code)} loads of 128 bits are on their way, not {wanted}")
    kind = "D" if dtype_of(code) == "fp64" else "F"
    adds, multiplies, fused = (code.count(kind + name) for name in ("ADD", "MUL", "FMA"))
    if fused or multiplies < 128 // BYTES[dtype_of(code)] or adds < multiplies:
        found.append(f"{multiplies} squares, {adds} additions and {fused} {kind}FMA: some have been fused")
    if kind == "F" and (code.count("DMUL") or code.count("DADD") > FLOAT64_ADDS):
        found.append(f"{code.count('DMUL')} DMUL and {code.count('DADD')} DADD: float64 for more than whole runs")
    return found


def problems_of_rows(code: Code) -> list[str]:
    return code.problems(ROWS_LIMIT)  # quotients and roots are expanded into DFMA: the PTX shows others


def dtype_of(code: Code) -> str:
    return next(name for sign, name in DTYPES.items() if f"grad_norm_kernel{sign}" in code.name)


def title(code: Code) -> str:
    if "scalars_kernel" in code.name:
        return f"rows          sm_{code.arch}"
    size = re.search(r"Li(\d+)E", code.name)[1]
    return f"squares {dtype_of(code)}  sm_{code.arch}, {size} bytes"


def controls(flags: list[str], squares: Code, rows: Code) -> bool:
    """Negative controls: each fault, put in on purpose, has to be noticed."""
    fusing = [flag.replace("-fmad=false", "-fmad=true") for flag in flags]
    fused = compiled("grad_norm", 90, fusing)[0]
    fused_rows = compiled("scalars", 90, fusing)[0]

    def narrow(code: list[str]) -> list[str]:
        return [name.replace("128", "64") for name in code]

    def serial(code: list[str]) -> list[str]:
        return [part for name in code for part in ((name, "FMUL") if name == LOAD else (name,))]

    def in_float64(code: list[str]) -> list[str]:
        return [*code, *["DADD"] * (128 // BYTES[dtype_of(squares)])]

    return all(
        [
            control("squares with -fmad=true", problems_of_squares(fused), "fused multiply-adds in the PTX"),
            control("the same, by the machine code", problems_of_squares(fused), "some have been fused"),
            control("rows with -fmad=true", problems_of_rows(fused_rows), "fused multiply-adds in the PTX"),
            control("loads of 64 bits", problems_of_squares(with_code(squares, narrow)), "on their way"),
            control("loads used one by one", problems_of_squares(with_code(squares, serial)), "on their way"),
            control("squares added in float64", problems_of_squares(with_code(squares, in_float64)), "whole runs"),
            control("a spill in rows", problems_of_rows(replace(rows, stack=16)), "spills"),
            control("8 registers more in rows", problems_of_rows(replace(rows, registers=72)), "registers, but"),
        ]
    )


def check(flags: list[str], rows: list[cuda_budgets.Row]) -> bool:
    """Whether nothing is wrong; adds what the kernels use to the table."""
    jobs = [(source, arch) for source in ("grad_norm", "scalars") for arch in ARCHITECTURES]
    with ThreadPoolExecutor(2) as pool:
        found = [code for codes in pool.map(lambda job: compiled(*job, flags), jobs) for code in codes]
    squares = [code for code in found if "grad_norm_kernel" in code.name]
    scalars = [code for code in found if "scalars_kernel" in code.name]
    print("\nThe kernels that add squares and make rows")
    for code in squares:
        if "4096 bytes" in title(code):
            dtype = dtype_of(code)
            rows.append(cuda_budgets.row(code, f"grad_norm, {dtype}", BYTES[dtype], 16 * in_flight(code), None))
    wrong = [f"{title(code)}: {problem}" for code in squares for problem in problems_of_squares(code)]
    wrong += [f"{title(code)}: {problem}" for code in scalars for problem in problems_of_rows(code)]
    expected = (SQUARES * len(ARCHITECTURES), ROWS * len(ARCHITECTURES))
    if (len(squares), len(scalars)) != expected:
        wrong.append(f"{len(squares)} and {len(scalars)} kernels, not {expected[0]} and {expected[1]}")
    print("\nNegative controls")
    noticed = controls(flags, next(code for code in squares if dtype_of(code) == "fp32"), scalars[0])
    print("\n" + ("\n".join(wrong) if wrong else f"{len(found)} kernels: nothing wrong"))
    return noticed and not wrong
