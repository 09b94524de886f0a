"""The table of ``make cuda-check``: what a kernel uses of a multiprocessor, and of the rate of issue.

A kernel that needs more instructions than a GPU issues while it copies the same bytes is bound by them, not by memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cuda_paths import Instruction
from cuda_sass import ROOT, Code

RESULTS = ROOT / "bench" / "results" / "cuda" / "machine_code.json"
THREADS = 128
"""A block's, in every kernel of a step (csrc/cuda/launch_args.h)."""
LANES = 128
"""Instructions of threads that a multiprocessor issues in a cycle: four warps' of 32 threads."""
PLAIN_IN_FLIGHT = 48 << 10
"""Bytes a multiprocessor that hide the latency of 8 TB/s: 1 us of them, on 148 multiprocessors, is 54 KB."""


@dataclass(frozen=True)
class GPU:
    """Its architecture, multiprocessors, clock under load in Hz, and bytes a second of a copy, read and written."""

    arch: int
    multiprocessors: int
    clock: float
    copy: float

    def share(self, instructions: float, moved: float) -> float:
        """Of the issue rate, at the bandwidth of a copy: above 1 a kernel is bound by instructions."""
        return instructions * self.copy / moved / (self.multiprocessors * LANES * self.clock)


GPUS = {
    "H100": GPU(90, 132, 1.7e9, 3.0e12),
    "H200": GPU(90, 132, 1.7e9, 4.3e12),
    "B200": GPU(100, 148, 1.7e9, 7.2e12),
}
"""A copy is known of the H200, 90 % of what its data sheet says; the others have 90 % of theirs, and its clock."""


@dataclass(frozen=True)
class Row:
    """A kernel on an architecture. Instructions are of an element, in the loop that most elements take."""

    kernel: str
    arch: int
    registers: int
    blocks: int
    in_flight: int
    """Bytes a multiprocessor of loads that are on their way before the first is used, with all blocks that fit."""
    instructions: float | None
    per_tile: float
    """Instructions an element in addition, of what is looked up once a tile."""
    moved: float
    """Bytes of an element, read and written."""
    spills: int

    def shares(self) -> dict[str, float]:
        """Of the issue rate, by GPU of this architecture."""
        if self.instructions is None:
            return {}
        total = self.instructions + self.per_tile
        return {name: gpu.share(total, self.moved) for name, gpu in GPUS.items() if gpu.arch == self.arch}


def blocks_of(registers: int) -> int:
    """That fit on a multiprocessor by their registers, which are handed out by 256 to a warp."""
    return min(65536 // (-(-registers // 8) * 8 * THREADS), 2048 // THREADS)


def bytes_loaded(turn: Sequence[Instruction]) -> int:
    """By the wide loads of a thread in one turn."""
    widths = (re.fullmatch(r"LDG\.E\.(?:EF\.)?(128|64)(?:\.CONSTANT)?", one.name) for one in turn)
    return sum(int(width[1]) // 8 for width in widths if width)


def row(
    code: Code, kernel: str, moved: float, loaded: int, instructions: float | None, per_tile: float = 0, blocks: int = 0
) -> Row:
    """Of a kernel of which a thread has ``loaded`` bytes on their way; ``blocks``, where threads limit them further."""
    spills = code.stack + code.local + sum(name.startswith(("LDL", "STL")) for name in code.instructions)
    fitting = blocks or blocks_of(code.registers)
    in_flight = fitting * THREADS * loaded
    rounded = None if instructions is None else round(instructions, 2)
    return Row(kernel, code.arch, code.registers, fitting, in_flight, rounded, round(per_tile, 2), moved, spills)


def print_table(rows: Iterable[Row]) -> None:
    """For a terminal: every kernel and architecture."""
    print(
        "\nBudgets: registers, blocks and threads a multiprocessor, KB in flight, instructions an element and what is"
    )
    print("looked up once a tile, share of the issue rate while a copy's bandwidth is reached\n")
    print(f"  {'kernel':38} arch   regs blocks threads    KB  instr.  +tile  " + "  ".join(GPUS))
    for one in rows:
        shares = one.shares()
        found = "  ".join(f"{shares[name]:4.0%}" if name in shares else "   -" for name in GPUS)
        instructions = "     -" if one.instructions is None else f"{one.instructions:6.1f}"
        print(
            f"  {one.kernel:38} sm_{one.arch:<4} {one.registers:3} {one.blocks:6} {one.blocks * THREADS:7}"
            f" {one.in_flight / 1024:5.0f}  {instructions} {one.per_tile:6.1f}  {found}"
        )


def save(rows: Iterable[Row], nvcc: str, torch: str | None, path: Path = RESULTS) -> None:
    """The same as a file, from which ``make readme`` writes the tables of docs/performance.md."""
    found = {
        "nvcc": nvcc,
        "torch": torch,
        "gpus": {name: asdict(gpu) for name, gpu in GPUS.items()},
        "rows": [asdict(one) | {"shares": {k: round(v, 3) for k, v in one.shares().items()}} for one in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
