"""What nvcc makes of the step's kernels over low-precision state: a part of tests/codegen/cuda_code.py.

A thread's wide loads have to be on their way together before anything is computed, each as wide as its array allows; a
kernel must not spill, nor fuse a multiplication with an addition beyond what divisions and square roots consist of.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from cuda_sass import ARCHITECTURES, CSRC, Code, compiled, control, with_code

MOMENTS = ("fp32", "bf16", "fp16", "int8")
"""A kernel each, in the order of csrc/numerics/quantization.h."""
LIMIT = 65536 // (4 * 128) // 8 * 8
"""Registers: 4 blocks an SM (csrc/cuda/low_precision_kernel.cu)."""
OTHERS = 6
"""Loads of 128 bits for the eight elements of parameter, gradient and master, the second of each where it has 32
bits."""
WIDE = {"fp32": {"128": 4}, "bf16": {"128": 2}, "fp16": {"128": 2}, "int8": {"64": 2}}
"""What the two moments add."""
DIVISION, ROOT, SUBROUTINES = 5, 3, 16
"""FFMA at most, in the expansion of each, and where rare values are treated."""
ARITHMETIC = re.compile(r"F(ADD|MUL|FMA)2?\b|MUFU|FCHK|I2F|REDUX|CREDUX")


def moments_of(code: Code) -> str:
    return MOMENTS[int(re.search(r"low_precision_kernelILNS_12MomentFormatE(\d)E", code.name)[1])]


def wide_accesses(code: Code, kind: str, zeros: bool = False) -> list[int]:
    """Where in the code the loads (LDG) or stores (STG) of several elements are."""
    pattern = re.compile(rf"{kind}\.E\.EF\.(128|64){' RZ' if zeros else ''}")
    return [at for at, name in enumerate(code.instructions) if pattern.fullmatch(name)]


def widths(code: Code, places: list[int]) -> dict[str, int]:
    return dict(Counter(code.instructions[at].split()[0].rpartition(".")[2] for at in places))


def expected(code: Code, others: int) -> dict[str, int]:
    return dict(Counter({"128": others}) + Counter(WIDE[moments_of(code)]))


def problems(code: Code) -> list[str]:
    """What is wrong with a kernel, in words."""
    found = code.problems(LIMIT)
    loads, stores, zeros = (wide_accesses(code, *what) for what in (("LDG",), ("STG",), ("STG", True)))
    for what, places, others in (("loads", loads, OTHERS), ("stores", stores, OTHERS - 2)):
        if widths(code, places) != expected(code, others):
            found.append(f"{what} by width in bits are {widths(code, places)}, not {expected(code, others)}")
    if widths(code, zeros) != {"128": 2}:
        found.append(f"stores of zeros by width in bits are {widths(code, zeros)}, not two of 128")
    used = [name for name in code.instructions[min(loads) : max(loads)] if ARITHMETIC.match(name)] if loads else []
    if used:
        found.append(f"{used[0]} comes before the last of the loads")
    roots = sum(name.startswith("MUFU.RSQ") for name in code.instructions)
    limit = DIVISION * code.count("FCHK") + ROOT * roots + SUBROUTINES
    fused = sum(name.startswith("FFMA") for name in code.instructions)
    if fused > limit:
        found.append(f"{fused} FFMA: divisions and square roots take {limit} at most")
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

    def narrow(code: list[str]) -> list[str]:
        return [name.replace("LDG.E.EF.64", "LDG.E.EF") for name in code]

    def halved(code: list[str]) -> list[str]:
        return [name.replace("128 RZ", "64 RZ") for name in code]

    def serial(code: list[str]) -> list[str]:
        first = code.index("LDG.E.EF.128")
        return [*code[: first + 1], "FMUL", *code[first + 1 :]]

    return all(
        [
            control("low-precision state with -fmad=true", problems(fused), "fused multiply-adds in the PTX"),
            control("the same, by the machine code", problems(fused), "divisions and square roots take"),
            control("compiled for 8 blocks an SM", problems(spilling), "spills"),
            control("codes loaded by fours", problems(with_code(good, narrow)), "loads by width"),
            control("zeros stored 64 bits at a time", problems(with_code(good, halved)), "stores of zeros"),
            control("a use before the next load", problems(with_code(good, serial)), "before the last of the loads"),
            control("more registers", problems(replace(good, registers=LIMIT + 8)), "registers, but"),
        ]
    )


def check(flags: list[str]) -> bool:
    """Whether nothing is wrong; prints what there is."""
    with ThreadPoolExecutor(2) as pool:
        per_architecture = pool.map(lambda arch: compiled("low_precision", arch, flags), ARCHITECTURES)
        found = [code for codes in per_architecture for code in codes]
    print("\nThe step's kernels over low-precision state\n")
    print("  moments  arch    registers  blocks/SM  loads of 128 and 64 bits  instructions")
    for code in sorted(found, key=lambda code: (MOMENTS.index(moments_of(code)), code.arch)):
        loads = widths(code, wide_accesses(code, "LDG"))
        blocks = 65536 // (-(-code.registers // 8) * 8 * 128)
        print(
            f"  {moments_of(code):7}  sm_{code.arch:<4} {code.registers:9}  {blocks:9}"
            f"  {loads.get('128', 0):15}{loads.get('64', 0):9}  {len(code.instructions):12}"
        )
    wrong = [f"{moments_of(code)} moments, sm_{code.arch}: {problem}" for code in found for problem in problems(code)]
    if len(found) != len(MOMENTS) * len(ARCHITECTURES):
        wrong.append(f"{len(found)} kernels, not {len(MOMENTS) * len(ARCHITECTURES)}")
    print("\nNegative controls")
    good = next(code for code in found if moments_of(code) == "int8" and code.arch == 90)
    noticed = controls(flags, good)
    print("\n" + ("\n".join(wrong) if wrong else f"{len(found)} kernels: nothing wrong"))
    return noticed and not wrong
