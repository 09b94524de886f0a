"""Reads the assembly of Triton kernels that were compiled for AMD's GPUs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_WIDTHS = r"(?:<(\d+) x )?(float|double|half|bfloat)"


@dataclass
class AmdCode:
    """What the assembler was given.

    Attributes:
        registers: vector registers of a thread.
        spills: vector registers that are spilled, and bytes of scratch memory of a thread. A scalar register that is
            spilled goes to a lane of a vector register, by an instruction and without memory.
        denormals: the modes of the hardware, for 32 bits and for 16 and 64 bits.
        fused: additions of LLVM's IR that are no instruction of their own.
        flags: of the IR's floating-point operations that allow another value than the rounded one.
    """

    registers: int
    spills: int
    denormals: tuple[int, int]
    fused: int
    flags: set[str]


def _directive(code: str, name: str) -> int:
    return int(re.findall(rf"\.{name}:?\s+(\d+)", code)[0])


def additions(ir: str) -> int:
    """Additions and subtractions of the IR, each element of a vector by itself."""
    found = re.findall(rf"\bf(?:add|sub)(?: [a-z]+)* {_WIDTHS}", ir)
    return sum(int(width or 1) for width, _ in found)


def own_additions(code: str) -> int:
    """Those that have an instruction; a packed one does two."""
    found = re.findall(r"\bv_(pk_|dual_)?(?:add|sub|subrev)_f(?:16|32|64)\w*", code)
    return sum(2 if packed == "pk_" else 1 for packed in found)


def read(stem: Path) -> AmdCode:
    code, ir = (Path(f"{stem}.{kind}").read_text() for kind in ("amdgcn", "llir"))
    return AmdCode(
        registers=_directive(code, "vgpr_count"),
        spills=_directive(code, "vgpr_spill_count") + _directive(code, "private_segment_fixed_size"),
        denormals=(
            _directive(code, "amdhsa_float_denorm_mode_32"),
            _directive(code, "amdhsa_float_denorm_mode_16_64"),
        ),
        fused=additions(ir) - own_additions(code),
        flags=set(re.findall(r"\bf(?:add|sub|mul|div) (?:[a-z]+ )*?(fast|contract|reassoc|afn|arcp)\b|(!fpmath)", ir)),
    )
