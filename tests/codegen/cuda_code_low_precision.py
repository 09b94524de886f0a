"""What nvcc makes of the step's kernels over low-precision state: a part of tests/codegen/cuda_code.py.

A thread's wide loads have to be on their way together before anything is computed, each as wide as its array allows; a
kernel must not spill, nor fuse a multiplication with an addition beyond what divisions and square roots consist of.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cuda_budgets
from cuda_paths import Instruction, counts, loads_before_use, parse, shortest_turn
from cuda_sass import ARCHITECTURES, CSRC, Code, compiled, control, one_by_one, with_sass

MOMENTS = ("fp32", "bf16", "fp16", "int8")
"""A kernel each, in the order of csrc/numerics/quantization.h."""
LIMIT = 65536 // (4 * 128) // 8 * 8
"""Registers: 4 blocks an SM (csrc/cuda/low_precision_kernel.cu)."""
ELEMENTS = 8
"""Of a thread: a block's in one turn."""
BLOCKS_OF_A_WARP = 4
"""In a tile of 4,096 elements (csrc/cuda/low_precision_kernel.cu): four warps, 256 elements a block."""
FUSED = 6
"""In the root and the division of an element."""
FACTOR = 5
"""In the division that makes a factor of a block of codes, of which there are two."""
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
TURNS = {
    "fp32 parameters": ("fp32", ""),
    "bf16 parameters": ("bf16", ""),
    "bf16 parameters, split": ("bf16", "split"),
    "bf16 parameters, stochastic": ("bf16", "stochastic"),
}
BUDGETS = {
    ("bf16", "bf16 parameters"): 70,
    ("bf16", "fp32 parameters"): 70,
    ("int8", "bf16 parameters"): 90,
    ("int8", "fp32 parameters"): 90,
    ("int8", "bf16 parameters, split"): 90,
    ("int8", "bf16 parameters, stochastic"): 100,
}
"""Instructions an element of a whole block on sm_90, at most: moments, and what else."""


def moments_of(code: Code) -> str:
    return MOMENTS[int(re.search(r"low_precision_kernelILNS_12MomentFormatE(\d)E", code.name)[1])]


def turns(code: Code, table: bool = False) -> dict[str, list[Instruction] | None]:
    """One turn over whole blocks of ordinary values, gradients being of the parameters' dtype; ``table``: by way of
    the look-up of a tile."""
    moments, parsed, found = moments_of(code), parse(code.sass), {}
    for name, (param, kept) in TURNS.items():
        codes = moments == "int8"
        written = BYTES[param] + (0 if codes else 2 * BYTES[moments]) + (2 if kept == "split" else 0)
        streams = (moments != "fp32") + (kept == "stochastic")
        work = {
            "load128": (written + BYTES[param]) * ELEMENTS // 16,
            "store128": written * ELEMENTS // 16,
            "load64": 2 * codes,
            "store64": 2 * codes,
            "root": ELEMENTS,
            "reciprocal": ELEMENTS + 2 * codes,
            "philox": 20 * streams // 2,
            "pack": ELEMENTS // 2 if (param, kept) == ("bf16", "") else 0,
        }
        if moments != "fp32" or kept:  # float32 alone is for csrc/cuda/step_kernel.cu
            found[name] = shortest_turn(parsed, work | ({"table": 2} if table else {}))
    return found


def problems(code: Code) -> list[str]:
    """What is wrong with a kernel, in words."""
    found, moments = code.problems(LIMIT), moments_of(code)
    for name, turn in turns(code).items():
        if turn is None:
            found.append(f"{name}: no turn over whole blocks has all of its loads and stores as wide as they can be")
            continue
        if not loads_before_use(turn):
            found.append(f"{name}: not all loads are on their way before the first use")
        fused = FUSED * ELEMENTS + (2 * FACTOR if moments == "int8" else 0)
        if moments != "fp16" and counts(turn, "FFMA") != fused:
            found.append(f"{name}: {counts(turn, 'FFMA')} FFMA in a turn, but divisions and roots take {fused}")
        budget = BUDGETS.get((moments, name))
        if code.arch == 90 and budget is not None and len(turn) > budget * ELEMENTS:
            found.append(f"{name}: {len(turn) / ELEMENTS:.1f} instructions an element, but the budget is {budget}")
    return found


def controls(flags: list[str], good: Code) -> bool:
    """Negative controls: each fault, put in on purpose, has to be noticed."""

    def of_int8(codes: list[Code]) -> Code:
        return next(code for code in codes if moments_of(code) == "int8")

    fused = of_int8(compiled("low_precision", 90, [flag.replace("-fmad=false", "-fmad=true") for flag in flags]))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(CSRC, Path(folder, "csrc")))
        source = copy / "cuda" / "low_precision_kernel.cu"
        promised = source.read_text()
        source.write_text(promised.replace("kLowPrecisionBlocksPerSM = 4;", "kLowPrecisionBlocksPerSM = 8;"))
        assert source.read_text() != promised
        spilling = of_int8(compiled("low_precision", 90, flags, copy))

    def narrow(sass: str) -> str:
        return sass.replace("LDG.E.EF.64", "LDG.E.EF")

    def longer(sass: str) -> str:
        return re.sub(r"(/\*([0-9a-f]+)\*/\s+FADD [^;]*;)", lambda f: f"{f[1]} /*{f[2]}8*/ NOP ;", sass)

    return all(
        [
            control("low-precision state with -fmad=true", problems(fused), "fused multiply-adds in the PTX"),
            control("the same, by the machine code", problems(fused), "divisions and roots take"),
            control("compiled for 8 blocks an SM", problems(spilling), "spills"),
            control("codes loaded by fours", problems(with_sass(good, narrow)), "as wide as they can be"),
            control("a use before the next load", problems(with_sass(good, one_by_one)), "before the first use"),
            control("an instruction more by each addition", problems(with_sass(good, longer)), "the budget is"),
            control("more registers", problems(replace(good, registers=LIMIT + 8)), "registers, but"),
        ]
    )


def budgets(code: Code) -> list[cuda_budgets.Row]:
    """What a kernel uses, for each turn."""
    moments, found = moments_of(code), []
    whole = turns(code, table=True)
    for name, turn in turns(code).items():
        if turn is None:
            continue
        param, kept = TURNS[name]
        moved = 3 * BYTES[param] + 4 * BYTES[moments] + (4 if kept == "split" else 0)
        loaded = cuda_budgets.bytes_loaded([one for one in turn if "CONSTANT" not in one.name])
        # A turn through the tile's look-up has one turn over blocks, of the four of a tile.
        per_tile = (len(whole[name]) - len(turn)) / ELEMENTS / BLOCKS_OF_A_WARP if whole[name] else 0
        title = f"{param}{', ' * bool(kept)}{kept}, moments {moments}"
        found.append(cuda_budgets.row(code, title, moved, loaded, len(turn) / ELEMENTS, per_tile))
    return found


def check(flags: list[str], rows: list[cuda_budgets.Row]) -> bool:
    """Whether nothing is wrong; adds what the kernels use to the table."""
    with ThreadPoolExecutor(2) as pool:
        per_architecture = pool.map(lambda arch: compiled("low_precision", arch, flags), ARCHITECTURES)
        found = [code for codes in per_architecture for code in codes]
    print("\nThe step's kernels over low-precision state")
    for code in sorted(found, key=lambda code: (MOMENTS.index(moments_of(code)), code.arch)):
        rows += budgets(code)
    wrong = [f"{moments_of(code)} moments, sm_{code.arch}: {problem}" for code in found for problem in problems(code)]
    if len(found) != len(MOMENTS) * len(ARCHITECTURES):
        wrong.append(f"{len(found)} kernels, not {len(MOMENTS) * len(ARCHITECTURES)}")
    print("\nNegative controls")
    good = next(code for code in found if moments_of(code) == "int8" and code.arch == 90)
    noticed = controls(flags, good)
    print("\n" + ("\n".join(wrong) if wrong else f"{len(found)} kernels: nothing wrong"))
    return noticed and not wrong
