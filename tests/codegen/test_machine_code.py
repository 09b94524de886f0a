"""What the compilers made of the kernels, read from the machine code; no GPU is needed.

The Triton kernels are compiled ahead of time and disassembled with the tools that Triton's package carries.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import triton

import radam_fused
from radam_fused.backends.triton import compat as triton_compiler
from radam_fused.backends.triton.compat import fuses
from tests.codegen.triton_code import Code, read

COMPILE = Path(__file__).parent / "compile_triton.py"
ARCHITECTURES = (80, 90, 100)
PAIRS = ("fp32-fp32", "bf16-bf16", "fp16-fp16", "bf16-fp32", "fp64-fp64")
BYTES = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2}
STORED = (
    "fp32-fp32-int8-alone",
    "bf16-bf16-bf16-stochastic",
    "fp16-fp16-fp16-stochastic",
    "bf16-fp16-int8-fp32",
    "bf16-bf16-fp32-split",
    "bf16-bf16-bf16-kahan",
)
"""Formats of parameter, gradient, moments and master weights: each way to store, and the most registers."""
THREADS, TILE = 128, 1024
ADDS, MULTIPLIES = 8, 8
"""Of the numeric contract, an element: the additions and multiplications outside of the division and the root."""


def compiled(folder: Path, arch: int) -> dict[tuple[str, str, int, bool], Code]:
    """Every kernel for an architecture, and for sm_90 some with fusion allowed, in a process of their own."""
    kernels = [(name, pair) for name in ("step", "step_zero") for pair in PAIRS]
    kernels += [("stored", form) for form in STORED] + [("stored_anywhere", form) for form in STORED[:3]]
    kernels += [("squares", grad) for grad in BYTES] + [("rows", "fp32")]
    jobs = [(*kernel, arch, False) for kernel in kernels]
    fused = ("step", "fp32-fp32"), ("stored", STORED[0]), ("squares", "fp32"), ("rows", "fp32")
    jobs += [(*kernel, arch, True) for kernel in fused if arch == 90]
    compiling = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, str(COMPILE), str(folder), json.dumps(jobs)], check=True, env=compiling)
    return {job: read(folder / "-".join(map(str, job))) for job in jobs}


class Kernels(dict[tuple[str, str, int, bool], Code]):
    """Machine code by kernel, form, architecture and whether fusion was allowed; compiled when it is first read."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __missing__(self, job: tuple[str, str, int, bool]) -> Code:
        found = compiled(self._folder, job[2])
        self.update(found)
        return found[job]


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """All kernels, each architecture compiled once."""
    return Kernels(tmp_path_factory.mktemp("cubins"))


KERNELS = pytest.mark.parametrize("pair", PAIRS)
ARCHS = pytest.mark.parametrize("arch", [pytest.param(a, marks=pytest.mark.long, id=f"sm_{a}") for a in ARCHITECTURES])
"""Long, all of them: the compiler takes ten seconds for an architecture."""


@ARCHS
@KERNELS
def test_full_tiles_move_128_bits_at_a_time(pair: str, arch: int, code: dict) -> None:
    """As many 128-bit loads and stores as the tile's bytes need, so no full tile is moved any other way.

    This also is the count of bytes: for fp32 8 loads and 6 stores of 16 bytes for 8 elements, 28 bytes an element.
    """
    param, grad = (BYTES[name] for name in pair.split("-"))
    moments = 8 if pair == "fp64-fp64" else 4
    elements = TILE // THREADS
    found = code["step", pair, arch, False]
    assert found.count("LDG.E.128") == elements * (param + grad + 2 * moments) // 16
    assert found.count("STG.E.128") == elements * (param + 2 * moments) // 16
    zeroing = code["step_zero", pair, arch, False]
    assert zeroing.count("LDG.E.128") == found.count("LDG.E.128")
    assert zeroing.count("STG.E.128") == found.count("STG.E.128") + elements * grad // 16


@ARCHS
@KERNELS
def test_nothing_spills(pair: str, arch: int, code: dict) -> None:
    rounds_by_itself(arch)
    for name in ("step", "step_zero"):
        found = code[name, pair, arch, False]
        assert not spills(found)
        assert found.registers <= (128 if pair == "fp64-fp64" else 88 if "fp16" in pair and arch >= 100 else 80)


def rounds_by_itself(arch: int) -> None:
    """Skips where the compiler is known not to: `test_a_compiler_that_fuses_is_known` has what is then the case."""
    if reason := fuses(arch):
        pytest.skip(reason)


def spills(found: Code) -> bool:
    local = [name for name in found.instructions if name.startswith(("LDL", "STL"))]
    return bool(found.stack or found.local or local)


LOW_PRECISION = pytest.mark.parametrize("form", STORED)
ON_A_THREAD = TILE // THREADS + 2
"""Elements of a full tile, and of the slice that the general path takes at a time."""


@ARCHS
@LOW_PRECISION
def test_low_precision_are_moved_as_wide_as_a_thread_s_share(form: str, arch: int, code: dict) -> None:
    """128 bits at a time; 8 codes of 8 bits are no more than 64. No part of a full tile is moved any other way."""
    param, grad, state, kept = form.split("-")
    written = BYTES[param] + {"fp32": 4, "split": 2, "kahan": 2}.get(kept, 0)
    codes = state == "int8"
    written += 0 if codes else 2 * BYTES[state]
    found = code["stored", form, arch, False]
    share = TILE // THREADS
    assert found.count("LDG.E.128") == share * (written + BYTES[grad]) // 16
    assert found.count("STG.E.128") == share * written // 16
    # Scalars of 64 bits are loaded too, but one by one; in PTX the codes are pairs of 32 bits.
    assert found.ptx.count("ld.global.v2.b32") == found.count("STG.E.64") == 2 * codes


@ARCHS
@LOW_PRECISION
def test_low_precision_spill_nothing(form: str, arch: int, code: dict) -> None:
    found = code["stored", form, arch, False]
    assert not spills(found)
    assert found.registers <= 128  # which leaves four blocks to a multiprocessor


@ARCHS
@LOW_PRECISION
def test_low_precision_round_every_operation_by_itself(form: str, arch: int, code: dict) -> None:
    rounds_by_itself(arch)
    found = code["stored", form, arch, False]
    adds, multiplies = arithmetic(found)
    assert adds >= ADDS * ON_A_THREAD
    assert multiplies >= MULTIPLIES * ON_A_THREAD
    assert not re.search(r"fma\.r[nzmp]|\.ftz|\.approx|div\.full", found.ptx)
    # float16 takes another division and another root an element, and codes two divisions a block: its factors, by two
    # paths. The second moment's own root is the update's.
    codes, more = "int8" in form, 2 if form.split("-")[2] == "fp16" else 1
    assert found.ptx.count("div.rn.f32") == more * ON_A_THREAD + 4 * codes
    assert found.ptx.count("sqrt.rn.f32") == more * ON_A_THREAD


@ARCHS
@pytest.mark.parametrize(("form", "streams"), [(STORED[1], 2), (STORED[4], 0), (STORED[5], 1)])
def test_eight_neighbours_share_their_random_numbers(form: str, streams: int, arch: int, code: dict) -> None:
    """10 rounds of Philox a stream, once for a thread's 8 elements and once on the general path, not for each."""
    factors = len(re.findall(r"\b(?:3528531795|-766435501|0xD2511F53)\b", code["stored", form, arch, False].ptx))
    assert 20 * streams <= factors <= 30 * streams


@ARCHS
@pytest.mark.parametrize("form", STORED[:3])
def test_random_numbers_from_anywhere(form: str, arch: int, code: dict) -> None:
    """Of shards: two groups of eight for each, still in registers, and as many blocks to a multiprocessor."""
    found = code["stored_anywhere", form, arch, False]
    assert not spills(found)
    assert found.registers <= 128


@ARCHS
@pytest.mark.parametrize("grad", BYTES)
def test_grad_norm(grad: str, arch: int, code: dict) -> None:
    """Full tiles are loaded 128 bits at a time; nothing spills; every square is rounded before it is added."""
    found = code["squares", grad, arch, False]
    loads = TILE // THREADS * BYTES[grad] // 16
    assert found.ptx.count("ld.global.v") == loads
    assert found.count("LDG.E.128") >= loads
    assert found.count("LDG.E.128") % loads == 0  # as often as the loop is unrolled
    assert not spills(found)
    assert found.registers <= 128
    assert not re.search(r"fma\.r[nzmp]\.f(32|64)", found.ptx)
    assert found.count("DFMA", "FFMA") == 0
    # A full tile's and a ragged one's squares, and the tree: 7 additions of a thread's lanes at least.
    lanes, wide = TILE // THREADS, grad == "fp64"
    multiplies, adds = (("DMUL",), ("DADD",)) if wide else (("FMUL",), ("FADD", "FHADD"))
    assert found.count(*multiplies) + 2 * found.count("FMUL2") >= 2 * lanes
    assert found.count(*adds) + 2 * found.count("FADD2") >= 2 * lanes
    assert found.count("DADD") >= 7 + lanes
    if not wide:
        assert found.count("DMUL") == 0
        # Runs are widened where they may end: after a full tile, after a ragged one, and at the sum's end.
        assert found.ptx.count("cvt.f64.f32") == 3 * lanes


@ARCHS
def test_scalars(arch: int, code: dict) -> None:
    """The formulas divide and take roots correctly rounded; fused operations come with those, none from a formula."""
    found = code["rows", "fp32", arch, False]
    assert not spills(found)
    assert found.registers <= 80
    divisions = len(re.findall(r"div\.\w+(\.\w+)?\.f64|div\.f64", found.ptx))
    assert found.ptx.count("div.rn.f64") == divisions > 50
    assert found.ptx.count("sqrt.rn.f64") == len(re.findall(r"sqrt\.\w+", found.ptx)) == 3
    assert not re.search(r"fma\.|\.ftz|\.approx|[^b]ex2|lg2", found.ptx)


def arithmetic(found: Code) -> tuple[int, int]:
    """fp32 additions and multiplications of the update; sm_100 packs two in one instruction, one of them idle at times.

    FHADD, of sm_100, adds a float16 to a float32, in one rounding.

    Those with .FTZ and the FFMA belong to the expansions of the division and the square root.
    """
    return (
        found.count("FADD", "FHADD") + 2 * found.count("FADD2"),
        found.count("FMUL") + 2 * found.count("FMUL2"),
    )


@ARCHS
@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair != "fp64-fp64"])
def test_no_multiply_is_fused_with_an_add(pair: str, arch: int, code: dict) -> None:
    """Every addition and multiplication of the contract is there by itself: the full tile's and the general path's."""
    rounds_by_itself(arch)
    found = code["step", pair, arch, False]
    elements = TILE // THREADS + 1
    adds, multiplies = arithmetic(found)
    assert adds >= ADDS * elements
    assert multiplies >= MULTIPLIES * elements
    assert "fma.rn" not in found.ptx


@ARCHS
def test_a_compiler_that_fuses_is_known(arch: int, code: dict) -> None:
    """The reading of the machine code, and what users are warned of, agree."""
    found = code["step", "bf16-bf16", arch, False]
    assert "fma.rn" not in found.ptx
    missing = arithmetic(found)[0] < ADDS * (TILE // THREADS + 1)
    assert missing == (fuses(arch) is not None)


@pytest.mark.parametrize(("version", "arch", "warned"), [("12.9", 100, 1), ("12.9", 90, 0), ("13.1", 100, 0)])
def test_users_are_warned_of_one_once(version: str, arch: int, warned: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = SimpleNamespace(version=version)
    monkeypatch.setattr(triton, "knobs", SimpleNamespace(nvidia=SimpleNamespace(ptxas_blackwell=tool)))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: divmod(arch, 10))
    triton_compiler.warn_of_fusion.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            triton_compiler.warn_of_fusion(torch.device("cuda", 0))
    triton_compiler.warn_of_fusion.cache_clear()
    assert [version in str(warning.message) for warning in caught] == [True] * warned


@ARCHS
def test_no_multiply_is_fused_with_an_add_in_fp64(arch: int, code: dict) -> None:
    found = code["step", "fp64-fp64", arch, False]
    assert found.ptx.count("mul.f64") + found.ptx.count("mul.rn.f64") >= MULTIPLIES * TILE // THREADS
    assert not re.search(r"fma\.r[nzmp]\.f64", found.ptx)


@pytest.mark.long
def test_fusion_is_noticed(code: dict) -> None:
    """The negative control: compiled with fusion allowed, the same reading finds additions missing."""
    adds, multiplies = arithmetic(code["step", "fp32-fp32", 90, True])
    assert adds < ADDS * (TILE // THREADS + 1)
    assert multiplies < MULTIPLIES * (TILE // THREADS + 1)
    assert "fma.rn.f32" in code["stored", STORED[0], 90, True].ptx
    assert code["squares", "fp32", 90, True].count("FFMA") > 0
    assert code["rows", "fp32", 90, True].count("DFMA") > code["rows", "fp32", 90, False].count("DFMA")
    assert "fma.rn.f64" in code["rows", "fp32", 90, True].ptx


@ARCHS
def test_division_and_root_are_correctly_rounded_and_keep_subnormals(arch: int, code: dict) -> None:
    ptx = code["step", "fp32-fp32", arch, False].ptx
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
