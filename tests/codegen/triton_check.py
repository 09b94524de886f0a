"""The machine code of all Triton kernels, for all architectures: ``triton_check.py [--triton VERSION ...]``; no GPU.

Prints a line for each kernel and architecture: registers of a thread, bytes and registers that are spilled, and
additions that the compiler has fused with a multiplication. The status is 1 if anything spills or is fused, but for
the compilers of which users are warned (`radam_fused.backends.triton.compat.fuses`). A version of Triton other than
the one that is installed is downloaded into build/triton-VERSION, and checked in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import triton

from radam_fused.backends.triton.compat import fuses
from tests.codegen import amd_code, triton_code

ROOT = Path(__file__).resolve().parents[2]
COMPILE = ROOT / "tests" / "codegen" / "compile_triton.py"
NVIDIA = (80, 89, 90, 100, 120)
AMD = ("gfx942", "gfx950", "gfx1100", "gfx1201")
DTYPES = ("fp32", "bf16", "fp16")
PAIRS = (*(f"{param}-{grad}" for param in DTYPES for grad in DTYPES), "fp64-fp64")
LOW_PRECISION = (
    *(f"fp32-fp32-{state}-alone" for state in ("bf16", "fp16", "int8")),
    *(f"{half}-{half}-{state}-stochastic" for half in ("bf16", "fp16") for state in ("fp32", half, "int8")),
    *(f"bf16-bf16-{state}-{master}" for state in ("fp32", "bf16", "int8") for master in ("fp32", "split", "kahan")),
    *(f"fp16-fp16-{state}-{master}" for state in ("fp32", "fp16", "int8") for master in ("fp32", "kahan")),
    "bf16-fp16-int8-fp32",
)
Job = tuple[str, str, "int | str", bool]


def jobs(architectures: Sequence[int | str]) -> list[Job]:
    """Every kernel for every architecture."""
    kernels = [(name, pair) for name in ("step", "step_zero") for pair in PAIRS]
    kernels += [("stored", form) for form in LOW_PRECISION]
    kernels += [("stored_anywhere", form) for form in LOW_PRECISION if form.endswith("stochastic")]
    kernels += [("squares", grad) for grad in (*DTYPES, "fp64")] + [("rows", "fp32"), ("rows", "fp64")]
    return [(*kernel, arch, False) for arch in architectures for kernel in kernels]


def fused_on_nvidia(code: triton_code.Code) -> int:
    """Additions of the PTX that are no instruction of their own; below 0 where the assembler has unrolled a loop."""
    asked = re.findall(r"\b(?:add|sub)(?:\.rn)?\.f(?:32|64)\b", code.ptx)
    packed = re.findall(r"\b(?:add|sub)(?:\.rn)?\.f32x2\b", code.ptx)
    found = code.count("FADD", "FHADD", "DADD") + 2 * code.count("FADD2")
    return len(asked) + 2 * len(packed) - found


def read(stem: Path, arch: int | str) -> tuple[int, int, int, str]:
    """Registers, what is spilled, what is fused, and what else is wrong."""
    if isinstance(arch, str):
        found = amd_code.read(stem)
        wrong = [f"allows {flag}" for flag in found.flags] + ["flushes denormals"] * (found.denormals != (3, 3))
        return found.registers, found.spills, max(found.fused, 0), ", ".join(wrong)
    code = triton_code.read(stem)
    local = sum(count for name, count in code.instructions.items() if name.startswith(("LDL", "STL")))
    wrong = ["fuses"] * bool(re.search(r"fma\.r[nzmp]", code.ptx))
    wrong += ["approximates or flushes"] * bool(re.search(r"\.ftz|\.approx|div\.full", code.ptx))
    return code.registers, code.stack + code.local + local, max(fused_on_nvidia(code), 0), ", ".join(wrong)


def compiled(wanted: Sequence[Job], folder: Path) -> Iterator[tuple[Job, Path]]:
    """Compiles jobs, twenty to a process: a compiler that dies takes no others with it."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    for k in range(0, len(wanted), 20):
        part = wanted[k : k + 20]
        subprocess.run([sys.executable, str(COMPILE), str(folder), json.dumps(part)], check=True, env=environment)
        for job in part:
            yield job, folder / "-".join(map(str, job))


def check(architectures: Sequence[int | str]) -> int:
    """Prints the table of the installed Triton; how many lines are wrong."""
    bad = 0
    print(f"Triton {triton.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        for (name, dtypes, arch, _), stem in compiled(jobs(architectures), Path(folder)):
            registers, spilled, fused, wrong = read(stem, arch)
            known = fuses(arch) is not None if isinstance(arch, int) else False
            if spilled or wrong or (fused and not known):
                bad += 1
                wrong = f"{wrong or 'spills' if spilled else wrong or 'fuses'}  <-- WRONG"
            shown = f"sm_{arch}" if isinstance(arch, int) else arch
            print(f"{shown:<8} {name:<16} {dtypes:<28} {registers:>4} {spilled:>4} {fused:>4}  {wrong}", flush=True)
    return bad


def folder_of(version: str) -> Path:
    """Where a version of Triton is, which is downloaded first where it is not."""
    folder = ROOT / "build" / f"triton-{version}"
    if not (folder / "triton").exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        subprocess.run([*command, f"triton=={version}"], check=True)
    return folder


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--triton", nargs="+", default=[], metavar="VERSION")
    parser.add_argument("--architectures", nargs="+", default=[*map(str, NVIDIA), *AMD])
    options = parser.parse_args(arguments)
    chosen = [int(name) if name.isdigit() else name for name in options.architectures]
    if not options.triton:
        bad = check(chosen)
        print(f"{bad} wrong")
        return int(bad > 0)
    failed = 0
    for version in options.triton:
        environment = dict(os.environ)
        if version != triton.__version__:
            environment["PYTHONPATH"] = os.pathsep.join([str(folder_of(version)), str(ROOT)])
        command = [sys.executable, "-m", "tests.codegen.triton_check", "--architectures", *options.architectures]
        failed += subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode != 0
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
