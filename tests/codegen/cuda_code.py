"""What nvcc makes of the CUDA kernels, read from the machine code: ``make cuda-check`` runs it, without a GPU.

Compiles every kernel for every architecture below and fails on a spill, on registers above what the launch bounds
promise, on narrow accesses where whole tiles move, on loads that wait for one another, and on a multiplication fused
with an addition. Negative controls show that each of these is noticed. Prints a table.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cuda_code_low_precision
import cuda_code_scalars
from cuda_sass import ARCHITECTURES, CSRC, Code, compiled, control, setting, with_code

KERNELS = 20
"""Ten pairs of dtypes, and arguments of 4 KB or 32 KB."""

THREADS, TILE = 128, 1024
BLOCKS = {"fp64": 4}
"""Blocks an SM, as csrc/cuda/step_kernel.cuh promises; 6 for every other parameter."""
BYTES = {"fp64": 8, "fp32": 4, "fp16": 2, "bf16": 2}
MANGLED = {"d": "fp64", "f": "fp32", "NS_7float16E": "fp16", "NS_8bfloat16E": "bf16"}

ADDS, MULTIPLIES = 8, 8
"""Of the numeric contract, an element."""
EXPANSION = 7
"""FFMA in the division and the square root of an element, and `SUBROUTINES` of them where both treat rare values."""
SUBROUTINES = 16


@dataclass
class Kernel(Code):
    """The machine code of a step's kernel."""

    param: str
    grad: str
    argument_bytes: int

    def __str__(self) -> str:
        return f"{self.param} parameters, {self.grad} gradients, {self.argument_bytes} bytes, sm_{self.arch}"

    @property
    def elements(self) -> int:
        """How often the update of one element stands in the code: once a division."""
        return self.count("FFMA") if self.param == "fp64" else self.count("FCHK")


def compile_kernels(arch: int, flags: list[str], csrc: Path = CSRC) -> list[Kernel]:
    kernels = []
    for code in compiled("step", arch, flags, csrc):
        param, grad, size = re.fullmatch(
            r".*11step_kernelI(d|f|NS_\w*?E)(d|f|NS_\w*?E|S\d*_)NS_15LaunchArgumentsI\w*?Li(\d+)E.*", code.name
        ).groups()
        pair = MANGLED[param], MANGLED[param] if grad.startswith("S") else MANGLED[grad]
        kernels.append(Kernel(**vars(code), param=pair[0], grad=pair[1], argument_bytes=int(size)))
    return kernels


@dataclass
class FullTile:
    """The part of a kernel that moves whole tiles: rounds of loads, arithmetic and stores."""

    rounds: int
    loads: int
    stores: int
    before_use: int
    """Loads of a round that are on their way before its first arithmetic."""
    instructions: int


def full_tile(kernel: Kernel) -> FullTile:
    """Found as the rounds with the most loads, 16 bytes wide and with nothing narrower among them."""
    arithmetic = re.compile(r"[FD](ADD|MUL|FMA)2?\b|MUFU|FCHK")
    accesses = [
        (at, name) for at, name in enumerate(kernel.instructions) if re.fullmatch(r"(LDG|STG)\.E\.EF(\.\w+)?", name)
    ]
    breaks = [0]  # where a round begins: a load after a store, or a change of width
    for k, ((_, a), (_, b)) in enumerate(pairwise(accesses), 1):
        if (a.startswith("STG") and b.startswith("LDG")) or a.endswith(".128") != b.endswith(".128"):
            breaks.append(k)
    rounds = [accesses[begin:end] for begin, end in pairwise([*breaks, len(accesses)])]
    wide = [r for r in rounds if r and r[0][1].startswith("LDG") and r[0][1].endswith(".128")]
    if not wide:
        return FullTile(0, 0, 0, 0, 0)

    def loads(r: list[tuple[int, str]]) -> int:
        return sum(name.startswith("LDG") for _, name in r)

    most = max(map(loads, wide))
    full = [r for r in wide if loads(r) == most]
    if (kernel.param, kernel.grad) != ("fp32", "fp32") and kernel.param != "fp64":
        full = full[:1]  # the last tile's round is as wide, and comes after
    before = []
    for r in full:
        first = next(k for k in range(r[0][0], len(kernel.instructions)) if arithmetic.match(kernel.instructions[k]))
        before.append(sum(at < first for at, name in r if name.startswith("LDG")))
    return FullTile(
        len(full),
        sum(map(loads, full)),
        sum(len(r) - loads(r) for r in full),
        min(before),
        sum(r[-1][0] - r[0][0] + 1 for r in full),
    )


def problems(kernel: Kernel) -> list[str]:
    """What is wrong with a kernel, in words."""
    found = kernel.problems(65536 // (BLOCKS.get(kernel.param, 6) * THREADS) // 8 * 8)

    # Per thread: its elements of a whole tile, and the bytes that each of them moves.
    elements, moment = TILE // THREADS, BYTES["fp64" if kernel.param == "fp64" else "fp32"]
    loads = elements * (BYTES[kernel.param] + BYTES[kernel.grad] + 2 * moment) // 16
    stores = elements * (BYTES[kernel.param] + 2 * moment) // 16
    full = full_tile(kernel)
    if (full.loads, full.stores) != (loads, stores):
        found.append(
            f"a whole tile is {full.loads} loads and {full.stores} stores of 128 bits, not {loads} and {stores}"
        )
    if full.rounds and full.before_use < full.loads // full.rounds:
        found.append(
            f"only {full.before_use} of {full.loads // full.rounds} loads are on their way before the first use"
        )

    # Clearing the gradient of a whole tile, and of the wide part of the last one.
    cleared = elements * BYTES[kernel.grad] // 16
    if kernel.count("STG.E.EF.128 RZ") <= cleared:
        found.append(
            f"{kernel.count('STG.E.EF.128 RZ')} stores of zeros are of 128 bits, but a whole tile takes {cleared}"
        )

    conversions = 2 * (kernel.param == "fp16") + (kernel.grad == "fp16")  # each has an addition of its own
    n, kind = kernel.elements, "D" if kernel.param == "fp64" else "F"
    adds = kernel.count(f"{kind}ADD") + 2 * kernel.count(f"{kind}ADD2")
    multiplies = kernel.count(f"{kind}MUL") + 2 * kernel.count(f"{kind}MUL2")
    if not n or adds < (ADDS + conversions) * n or multiplies < MULTIPLIES * n:
        found.append(f"{adds} additions and {multiplies} multiplications for {n} elements: some have been fused")
    if kind == "F" and kernel.count("FFMA") > EXPANSION * n + SUBROUTINES:
        found.append(f"{kernel.count('FFMA')} FFMA: more than the divisions and roots of {n} elements take")
    return found


def controls(flags: list[str], good: Kernel) -> bool:
    """Negative controls: each fault, put in on purpose, has to be noticed."""

    def find(kernels: list[Kernel]) -> Kernel:
        return next(k for k in kernels if (k.param, k.grad, k.argument_bytes) == ("fp32", "fp32", 4096))

    fusing = find(compile_kernels(90, [flag.replace("-fmad=false", "-fmad=true") for flag in flags]))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(CSRC, Path(folder, "csrc")))
        header = copy / "cuda" / "step_kernel.cuh"
        promised = header.read_text()
        header.write_text(promised.replace("? 4 : 6;", "? 12 : 12;"))
        assert header.read_text() != promised
        spilling = find(compile_kernels(90, flags, copy))

    def narrow(code: list[str]) -> list[str]:
        first = code.index("LDG.E.EF.128")
        return [*code[:first], "LDG.E.EF.64", "LDG.E.EF.64", *code[first + 1 :]]

    def serial(code: list[str]) -> list[str]:
        first = code.index("LDG.E.EF.128")
        return [*code[: first + 1], "FMUL", *code[first + 1 :]]

    def narrow_zeros(code: list[str]) -> list[str]:
        return [name.replace(".128 RZ", ".64 RZ") for name in code]

    crowded = Kernel(**{**vars(good), "registers": good.registers + 24})
    return all(
        [
            control("compiled with -fmad=true", problems(fusing), "fused multiply-adds in the PTX"),
            control("the same, by the machine code", problems(fusing), "some have been fused"),
            control("compiled for 12 blocks an SM", problems(spilling), "spills"),
            control("a load of 64 bits in a whole tile", problems(with_code(good, narrow)), "of 128 bits"),
            control("a use before the next load", problems(with_code(good, serial)), "before the first use"),
            control("zeros stored 64 bits at a time", problems(with_code(good, narrow_zeros)), "stores of zeros"),
            control("24 registers more", problems(crowded), "registers, but"),
        ]
    )


def main() -> int:
    if shutil.which("nvcc") is None:
        sys.exit("make cuda-check compiles CUDA code (it runs none): put the nvcc of a CUDA toolkit on PATH")
    flags = setting("NVCC_NUMERIC_FLAGS")
    with ThreadPoolExecutor(2) as pool:
        kernels = [k for found in pool.map(lambda arch: compile_kernels(arch, flags), ARCHITECTURES) for k in found]
    print("Machine code of the CUDA kernels (arguments of 4 KB; those of 32 KB are checked as well)\n")
    print("  param  grad  arch    registers  blocks/SM  loads   stores  instructions  spills")
    print("                                             of 128 bits     an element")
    for k in kernels:
        if k.argument_bytes > 4096:
            continue
        full = full_tile(k)
        blocks = 65536 // (-(-k.registers // 8) * 8 * THREADS)
        per_element = full.instructions * THREADS // TILE
        print(
            f"  {k.param:5}  {k.grad}  sm_{k.arch:<4} {k.registers:9}  {blocks:9}  {full.loads:5}  {full.stores:7}"
            f"  {per_element:12}  {Counter(k.instructions)['STL']:6}"
        )
    wrong = [f"{kernel}: {problem}" for kernel in kernels for problem in problems(kernel)]
    if len(kernels) != KERNELS * len(ARCHITECTURES):
        wrong.append(f"{len(kernels)} kernels, not {KERNELS * len(ARCHITECTURES)}")
    print("\nNegative controls")
    good = next(k for k in kernels if (k.param, k.grad, k.argument_bytes, k.arch) == ("fp32", "fp32", 4096, 90))
    noticed = controls(flags, good)
    print("\n" + ("\n".join(wrong) if wrong else f"{len(kernels)} kernels: nothing wrong"))
    others = [part.check(flags) for part in (cuda_code_scalars, cuda_code_low_precision)]
    return int(bool(wrong) or not noticed or not all(others))


if __name__ == "__main__":
    sys.exit(main())
