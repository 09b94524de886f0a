"""The C++ for aarch64: ``python -m tests.codegen.arm_check``; no such machine needed.

All of the extension's sources compile for aarch64 without a warning, and its kernels, run by qemu-user, leave the bits
that they leave here, where the tests compare them with ``reference``. It takes a cross compiler (aarch64-linux-gnu-g++,
or the package ziglang, which ``pip install`` brings) and qemu-aarch64; with ``--missing`` it says which of them is
missing, with ``--kernels`` it leaves out the other sources. ``CXX_AARCH64`` and ``QEMU_AARCH64`` name other tools.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NUMERIC = ["-fno-fast-math", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]  # as in setup.py
FLAGS = ["-O3", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-Icsrc"]
KERNELS = [
    "tests/codegen/arm_kernels.cpp",
    "csrc/cpu/cpu_capability.cpp",
    "csrc/cpu/grad_norm_kernel.cpp",
    "csrc/cpu/low_precision_kernel.cpp",
    "csrc/cpu/step_kernel.cpp",
]
X86_KERNELS = ["csrc/cpu/avx512/low_precision_kernel.cpp"]


def cross_compiler() -> list[str] | None:
    """The command that compiles for aarch64, or None."""
    named = os.environ.get("CXX_AARCH64")
    if named:
        return shlex.split(named)
    found = shutil.which("aarch64-linux-gnu-g++")
    if found:
        return [found]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl"]
    return None


def emulator() -> str | None:
    """The program that runs aarch64's programs, or None."""
    named = os.environ.get("QEMU_AARCH64")
    return named or shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


def missing() -> list[str]:
    """What is not here, and where it comes from."""
    lacking = []
    if cross_compiler() is None:
        lacking.append("a cross compiler (aarch64-linux-gnu-g++, or pip install ziglang)")
    if emulator() is None:
        lacking.append("qemu-aarch64 (Debian: qemu-user or qemu-user-static)")
    return lacking


def run(command: Sequence[str], **options: object) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def compile_sources(compiler: list[str], folder: Path) -> int:
    """Compiles all of the extension's sources; how many there are."""
    from torch.utils import cpp_extension

    headers = [f"-isystem{path}" for path in (*cpp_extension.include_paths(), sysconfig.get_paths()["include"])]
    defines = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DPy_LIMITED_API=0x030a0000"]
    compiler = [word.replace("-musl", "-gnu") for word in compiler]  # torch's headers declare what glibc does
    sources = sorted(path for room in ("args", "cpu", "python") for path in (ROOT / "csrc" / room).glob("*.cpp"))
    sources += sorted((ROOT / "csrc" / "cpu" / "avx512").glob("*.cpp"))

    def compile_one(source: Path) -> None:
        target = str(folder / f"{source.parent.name}-{source.stem}.o")
        run([*compiler, *FLAGS, *NUMERIC, *headers, *defines, "-fPIC", "-c", str(source), "-o", target])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources))
    return len(sources)


def kernels(compiler: list[str], folder: Path, numeric: list[str], *more: str) -> Path:
    """The program of arm_kernels.cpp."""
    program = folder / f"kernels-{len(list(folder.iterdir()))}"
    run([*compiler, *FLAGS, *numeric, *KERNELS, *more, "-o", str(program)])
    return program


def main(arguments: Sequence[str]) -> int:
    lacking = missing()
    if "--missing" in arguments or lacking:
        print(*(f"arm-check needs {what}" for what in lacking), sep="\n")
        return int(bool(lacking))
    compiler, qemu = cross_compiler(), emulator()
    assert compiler is not None
    assert qemu is not None
    host = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "--kernels" not in arguments:
            print(f"{compile_sources(compiler, folder)} sources compile for aarch64")
        here = run([str(kernels(host, folder, NUMERIC, *X86_KERNELS))]).splitlines()
        there = run([qemu, str(kernels(compiler, folder, NUMERIC, "-static"))]).splitlines()
        fused = ["-ffp-contract=fast" if flag == "-ffp-contract=off" else flag for flag in NUMERIC]
        wrong = run([qemu, str(kernels(compiler, folder, fused, "-static"))]).splitlines()
    different = [line for line, other in zip(here, there, strict=True) if line != other]
    noticed = sum(line != other for line, other in zip(here, wrong, strict=True))
    print(f"{len(here)} cases of the kernels under {Path(qemu).name}: {len(different)} differ")
    print(f"the negative control, operations fused: {noticed} differ")
    print(*different, sep="\n", end="\n" if different else "")
    return int(bool(different) or not noticed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
