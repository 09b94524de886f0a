"""What nvcc makes of the CUDA kernels, read from the machine code: ``make cuda-check`` runs it, without a GPU.

Compiles every kernel for every architecture below and fails on a spill, on registers above what the launch bounds
promise, on narrow accesses where whole tiles move, on loads that wait for one another, and on a multiplication fused
with an addition. Negative controls show that each of these is noticed. Prints a table.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cuda_budgets
import cuda_code_low_precision
import cuda_code_scalars
import cuda_code_torch
from cuda_paths import Instruction, counts, half_sectors, loads_before_use, parse, shortest_turn
from cuda_sass import (
    ARCHITECTURES,
    CSRC,
    Code,
    compiled,
    control,
    nvcc_version,
    one_by_one,
    setting,
    with_code,
    with_sass,
)

KERNELS = 20
"""Ten pairs of dtypes, and arguments of 4 KB or 32 KB."""

THREADS, TILE = 128, 1024
BLOCKS = {"fp64": 4}
"""Blocks an SM, as csrc/cuda/step_kernel.cuh promises; 6 for every other parameter."""
BYTES = {"fp64": 8, "fp32": 4, "fp16": 2, "bf16": 2}
MANGLED = {"d": "fp64", "f": "fp32", "NS_7float16E": "fp16", "NS_8bfloat16E": "bf16"}

ADDS, MULTIPLIES, FUSED = 7, 10, 6
"""Of an element in a whole tile: of the numeric contract, and in the sequences of its root and its division."""
ELEMENTS = 8
"""Of a thread, in one turn over whole tiles."""
VECTORS = 2
"""Of four elements: one access of 128 bits to float32, one of 64 to 16-bit numbers."""
BUDGETS = {("fp32", "fp32"): 45, ("bf16", "fp32"): 52, ("bf16", "bf16"): 52, ("fp32", "bf16"): 52}
"""Instructions an element of a whole tile on sm_90, at most; 60 with parameters or gradients of float16."""


@dataclass
class Kernel(Code):
    """The machine code of a step's kernel."""

    param: str
    grad: str
    argument_bytes: int

    def __str__(self) -> str:
        return f"{self.param} parameters, {self.grad} gradients, {self.argument_bytes} bytes, sm_{self.arch}"

    @property
    def turn(self) -> list[Instruction] | None:
        """One turn over whole tiles of ordinary values."""
        written, read = [self.param, "fp32", "fp32"], [self.param, self.grad, "fp32", "fp32"]
        work = {
            f"{kind}{32 * size}": VECTORS * [BYTES[array] for array in arrays].count(size)
            for kind, arrays in (("load", read), ("store", written))
            for size in (4, 2)
        } | {
            "table": 2,  # of a segment: a turn of the last tile's loop has none
            "root": ELEMENTS,
            "reciprocal": ELEMENTS,
        }
        return shortest_turn(parse(self.sass), work)


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


def problems_of_doubles(kernel: Kernel) -> list[str]:
    """What is wrong with a whole tile of float64."""
    found = []
    elements = TILE // THREADS
    loads, stores = elements * 4 * 8 // 16, elements * 3 * 8 // 16
    full = full_tile(kernel)
    if (full.loads, full.stores) != (loads, stores):
        found.append(
            f"a whole tile is {full.loads} loads and {full.stores} stores of 128 bits, not {loads} and {stores}"
        )
    if full.rounds and full.before_use < full.loads // full.rounds:
        found.append(
            f"only {full.before_use} of {full.loads // full.rounds} loads are on their way before the first use"
        )
    adds = kernel.count("DADD")
    if adds < 8 * elements:
        found.append(f"{adds} additions of float64 for {elements} elements: some have been fused")
    return found


def problems(kernel: Kernel) -> list[str]:
    """What is wrong with a kernel, in words."""
    found = kernel.problems(65536 // (BLOCKS.get(kernel.param, 6) * THREADS) // 8 * 8)
    # Clearing the gradient of a whole tile, and of the wide part of the last one.
    width = 64 if BYTES[kernel.grad] == 2 else 128
    cleared = TILE // THREADS * BYTES[kernel.grad] * 8 // width
    zeros = kernel.count(f"STG.E.EF.{width} RZ")
    if zeros <= cleared:
        found.append(f"{zeros} stores of zeros are of {width} bits, but a whole tile takes {cleared}")
    if kernel.param == "fp64":
        return [*found, *problems_of_doubles(kernel)]
    turn = kernel.turn
    if turn is None:
        return [*found, "no turn over whole tiles has loads and stores as wide as four elements"]
    if not loads_before_use(turn):
        found.append("not all loads of a turn are on their way before the first use")
    adds, multiplies, fused = (counts(turn, name) for name in ("FADD", "FMUL", "FFMA"))
    if adds < ADDS * ELEMENTS or multiplies < MULTIPLIES * ELEMENTS or fused != FUSED * ELEMENTS:
        found.append(f"{adds} additions, {multiplies} multiplications and {fused} FFMA in a turn: some have been fused")
    if skipping := half_sectors(turn):
        found.append(f"{len(skipping)} accesses of a warp touch sectors in part, such as {skipping[0]}")
    most = BUDGETS.get((kernel.param, kernel.grad), 60)
    if kernel.arch == 90 and len(turn) > most * ELEMENTS:
        found.append(f"{len(turn) / ELEMENTS:.1f} instructions an element: the budget is {most}")
    if budget(kernel).in_flight < cuda_budgets.PLAIN_IN_FLIGHT:
        found.append(f"{budget(kernel).in_flight} bytes in flight: at least {cuda_budgets.PLAIN_IN_FLIGHT} are needed")
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

    def narrow(sass: str) -> str:
        return sass.replace("LDG.E.EF.128", "LDG.E.EF.64")

    def side_by_side(sass: str) -> str:
        return re.sub(r"(LDG\.E\.EF\.128 [^;]*)\+0x800\]", r"\1+0x10]", sass)

    def longer(sass: str) -> str:
        return re.sub(r"(/\*([0-9a-f]+)\*/\s+FADD [^;]*;)", lambda f: f"{f[1]} /*{f[2]}8*/ NOP ;", sass)

    def narrow_zeros(code: list[str]) -> list[str]:
        return [name.replace(".128 RZ", ".32 RZ") for name in code]

    crowded = Kernel(**{**vars(good), "registers": good.registers + 24})
    single = Kernel(**{**vars(good), "registers": good.registers + 144})
    return all(
        [
            control("compiled with -fmad=true", problems(fusing), "fused multiply-adds in the PTX"),
            control("the same, by the machine code", problems(fusing), "some have been fused"),
            control("compiled for 12 blocks an SM", problems(spilling), "spills"),
            control("loads of 64 bits in a whole tile", problems(with_sass(good, narrow)), "as wide as four elements"),
            control("two loads side by side", problems(with_sass(good, side_by_side)), "touch sectors in part"),
            control("a use before the next load", problems(with_sass(good, one_by_one)), "before the first use"),
            control("an instruction more by each addition", problems(with_sass(good, longer)), "the budget is"),
            control("zeros stored 32 bits at a time", problems(with_code(good, narrow_zeros)), "stores of zeros"),
            control("24 registers more", problems(crowded), "registers, but"),
            control("144 registers more", problems(single), "bytes in flight"),
        ]
    )


def budget(kernel: Kernel) -> cuda_budgets.Row:
    """What a kernel uses; those of 32 KB of arguments use the same."""
    name = f"{kernel.param}, gradients {kernel.grad}"
    moved = 2 * BYTES[kernel.param] + BYTES[kernel.grad] + 4 * max(BYTES[kernel.param], BYTES["fp32"])
    if kernel.param == "fp64":
        full = full_tile(kernel)
        return cuda_budgets.row(kernel, name, moved, 16 * full.before_use, full.instructions * THREADS / TILE)
    turn = kernel.turn or []
    return cuda_budgets.row(kernel, name, moved, cuda_budgets.bytes_loaded(wide(turn)), len(turn) / ELEMENTS)


def wide(turn: list[Instruction]) -> list[Instruction]:
    """Without what a turn looks up."""
    return [one for one in turn if ".CONSTANT" not in one.name]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--save", action="store_true", help="write bench/results/cuda/machine_code.json")
    parser.add_argument("--torch", type=Path, help="a CUDA torch's folder, for its fused Adam; .venv-cuda's else")
    options = parser.parse_args()
    if shutil.which("nvcc") is None:
        sys.exit("make cuda-check compiles CUDA code (it runs none): put the nvcc of a CUDA toolkit on PATH")
    flags = setting("NVCC_NUMERIC_FLAGS")
    with ThreadPoolExecutor(2) as pool:
        kernels = [k for found in pool.map(lambda arch: compile_kernels(arch, flags), ARCHITECTURES) for k in found]
    print("Machine code of the CUDA kernels")
    rows = [budget(k) for k in kernels if k.argument_bytes == 4096]
    wrong = [f"{kernel}: {problem}" for kernel in kernels for problem in problems(kernel)]
    if len(kernels) != KERNELS * len(ARCHITECTURES):
        wrong.append(f"{len(kernels)} kernels, not {KERNELS * len(ARCHITECTURES)}")
    print("\nNegative controls")
    good = next(k for k in kernels if (k.param, k.grad, k.argument_bytes, k.arch) == ("fp32", "fp32", 4096, 90))
    noticed = controls(flags, good)
    print("\n" + ("\n".join(wrong) if wrong else f"{len(kernels)} kernels: nothing wrong"))
    others = [part.check(flags, rows) for part in (cuda_code_scalars, cuda_code_low_precision)]
    torch = cuda_code_torch.add(rows, options.torch)
    cuda_budgets.print_table(rows)
    if options.save:
        cuda_budgets.save(rows, nvcc_version(), torch)
    return int(bool(wrong) or not noticed or not all(others))


if __name__ == "__main__":
    sys.exit(main())
