"""What the compilers made of the kernels, read from the machine code; no GPU is needed.

The Triton kernel is compiled ahead of time and disassembled with the tools that Triton's package carries.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

import radam_fused

COMPILE = Path(__file__).parent / "compile_triton.py"
TOOLS = Path(__import__("triton").__file__).parent / "backends" / "nvidia" / "bin"
ARCHITECTURES = (80, 90, 100)
PAIRS = ("fp32-fp32", "bf16-bf16", "fp16-fp16", "bf16-fp32", "fp64-fp64")
BYTES = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2}
THREADS, TILE = 128, 1024
ADDS, MULTIPLIES = 6, 8
"""Of the numeric contract, an element: the additions and multiplications outside of the division and the root."""


@dataclass
class Code:
    instructions: Counter[str]
    registers: int
    stack: int
    local: int
    ptx: str

    def count(self, *names: str) -> int:
        return sum(n for name, n in self.instructions.items() if name in names)


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int, bool], Code]:
    """Every kernel for every architecture, and one with fusion allowed, compiled once in a process of its own."""
    folder = tmp_path_factory.mktemp("cubins")
    jobs = [(pair, arch, False) for pair in PAIRS for arch in ARCHITECTURES] + [("fp32-fp32", 90, True)]
    compiling = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, str(COMPILE), str(folder), json.dumps(jobs)], check=True, env=compiling)
    return {job: read(folder / "-".join(map(str, job))) for job in jobs}


def read(stem: Path) -> Code:
    cubin = f"{stem}.cubin"
    sass = subprocess.run([TOOLS / "cuobjdump", "-sass", cubin], check=True, capture_output=True, text=True).stdout
    usage = subprocess.run(
        [TOOLS / "cuobjdump", "-res-usage", cubin], check=True, capture_output=True, text=True
    ).stdout
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    # An instruction, after its address comment and an optional predicate.
    names = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", sass)
    return Code(Counter(names), numbers["REG"], numbers["STACK"], numbers["LOCAL"], Path(f"{stem}.ptx").read_text())


KERNELS = pytest.mark.parametrize("pair", PAIRS)
ARCHS = pytest.mark.parametrize("arch", ARCHITECTURES, ids=[f"sm_{a}" for a in ARCHITECTURES])


@ARCHS
@KERNELS
def test_full_tiles_move_128_bits_at_a_time(pair: str, arch: int, code: dict) -> None:
    """As many 128-bit loads and stores as the tile's bytes need, so no full tile is moved any other way.

    This also is the count of bytes: for fp32 8 loads and 6 stores of 16 bytes for 8 elements, 28 bytes an element.
    """
    param, grad = (BYTES[name] for name in pair.split("-"))
    moments = 8 if pair == "fp64-fp64" else 4
    elements = TILE // THREADS
    found = code[pair, arch, False]
    assert found.count("LDG.E.128") == elements * (param + grad + 2 * moments) // 16
    assert found.count("STG.E.128") == elements * (param + 2 * moments) // 16


@ARCHS
@KERNELS
def test_nothing_spills(pair: str, arch: int, code: dict) -> None:
    found = code[pair, arch, False]
    assert found.stack == 0
    assert found.local == 0
    assert not [name for name in found.instructions if name.startswith(("LDL", "STL"))]
    assert found.registers <= (128 if pair == "fp64-fp64" else 80)


def arithmetic(found: Code) -> tuple[int, int]:
    """fp32 additions and multiplications of the update; sm_100 packs two in one instruction, one of them idle at times.

    Those with .FTZ and the FFMA belong to the expansions of the division and the square root.
    """
    return (
        found.count("FADD") + 2 * found.count("FADD2"),
        found.count("FMUL") + 2 * found.count("FMUL2"),
    )


@ARCHS
@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair != "fp64-fp64"])
def test_no_multiply_is_fused_with_an_add(pair: str, arch: int, code: dict) -> None:
    """Every addition and multiplication of the contract is there by itself: the full tile's and the general path's."""
    found = code[pair, arch, False]
    elements = TILE // THREADS + 1
    adds, multiplies = arithmetic(found)
    assert adds >= ADDS * elements
    assert multiplies >= MULTIPLIES * elements
    assert "fma.rn" not in found.ptx


@ARCHS
def test_no_multiply_is_fused_with_an_add_in_fp64(arch: int, code: dict) -> None:
    found = code["fp64-fp64", arch, False]
    assert found.ptx.count("mul.f64") + found.ptx.count("mul.rn.f64") >= MULTIPLIES * TILE // THREADS
    assert not re.search(r"fma\.r[nzmp]\.f64", found.ptx)


def test_fusion_is_noticed(code: dict) -> None:
    """The negative control: compiled with fusion allowed, the same reading finds additions missing."""
    adds, multiplies = arithmetic(code["fp32-fp32", 90, True])
    assert adds < ADDS * (TILE // THREADS + 1)
    assert multiplies < MULTIPLIES * (TILE // THREADS + 1)


@ARCHS
def test_division_and_root_are_correctly_rounded_and_keep_subnormals(arch: int, code: dict) -> None:
    ptx = code["fp32-fp32", arch, False].ptx
    elements = TILE // THREADS + 1
    assert ptx.count("sqrt.rn.f32") == elements
    assert ptx.count("div.rn.f32") == elements
    assert not re.search(r"\.ftz|\.approx|div\.full", ptx)


def test_cpu_kernels_hold_no_fused_multiply_add() -> None:
    """The extension's vector kernels multiply and add apart, though AVX-512 machines could do both at once."""
    if shutil.which("objdump") is None:
        pytest.fail("objdump (binutils) comes with every g++; install it")
    library = Path(radam_fused.__file__).parent / "_C.abi3.so"
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(library)], check=True, capture_output=True, text=True
    ).stdout
    assert "vsqrtps" in listing
    assert "%zmm" in listing
    assert not re.search(r"\bvfn?m(add|sub)", listing)
