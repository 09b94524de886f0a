"""Builds the extension under a sanitizer, in a copy of the sources: build/sanitize/<name>.

The copy has its own ``radam_fused/_C.abi3.so``; the one of this checkout stays as it is. A compiler of that folder adds
the flags at the end of each command line, so that setup.py and the tests that compile something need not know of it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT

HERE = Path(__file__).parent
COPIED = ("radam_fused", "csrc", "tests", "pyproject.toml", "setup.py", "README.md", "LICENSE")
NAMES = ("address", "thread")
CAPABILITIES = ("baseline", "avx2", "avx512")


@dataclass(frozen=True)
class Sanitizer:
    """What one build is made of, and how its process is started."""

    name: str
    flags: tuple[str, ...]
    libraries: tuple[str, ...]
    """Preloaded, as Python itself is not built under a sanitizer."""
    options: Mapping[str, str]

    @property
    def folder(self) -> Path:
        return ROOT / "build" / "sanitize" / self.name

    @property
    def reports(self) -> list[Path]:
        """What the runtimes have written so far, a file per process."""
        return sorted(self.folder.glob("report.*"))


# -O1 keeps the loops as they are written; what is looked for are addresses and orders, not machine code.
SHARED = ("-O1", "-g1", "-fno-omit-frame-pointer")
SANITIZERS = {
    "address": Sanitizer(
        "address",
        # vptr needs the type information of torch's classes, which libtorch hides.
        (*SHARED, "-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=undefined"),
        # libstdc++ as well, or the runtime would not find the function that throws, which it replaces.
        ("libasan.so", "libstdc++.so.6"),
        {
            # CPython and torch keep what they have until the process ends.
            "ASAN_OPTIONS": "detect_leaks=0:log_path={log}:detect_stack_use_after_return=1:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1:log_path={log}",
            "PYTHONMALLOC": "malloc",
        },
    ),
    "thread": Sanitizer(
        "thread",
        (*SHARED, "-fsanitize=thread"),
        ("libtsan.so",),
        {"TSAN_OPTIONS": "exitcode=66:history_size=4:log_path={log}:suppressions={here}/thread_suppressions.txt"},
    ),
}


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "")) or [next(filter(shutil.which, ("c++", "g++")))]


def missing() -> list[str]:
    """The runtimes that the compiler does not have."""
    libraries = {library for sanitizer in SANITIZERS.values() for library in sanitizer.libraries}
    return sorted(library for library in libraries if not _library(library).is_file())


def _library(name: str) -> Path:
    found = subprocess.run([*compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return Path(found.stdout.strip())


def build(sanitizer: Sanitizer) -> None:
    """Copies what has changed and compiles it."""
    folder = sanitizer.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            for file in set(target.rglob("*.py")):  # of a module or a test that was removed or moved since
                file.unlink()
            shutil.copytree(
                source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.pyc")
            )
        else:
            shutil.copy2(source, target)
    _write_compiler(sanitizer)
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=folder,
        env={**os.environ, "CXX": str(folder / "c++"), "RADAM_FUSED_NO_CUDA": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{done.stdout}{done.stderr}")
    planted = [str(folder / "c++"), "-O1", "-fopenmp", "-shared", "-fPIC", str(HERE / "planted.cpp")]
    subprocess.run([*planted, "-o", str(folder / "planted.so")], check=True)
    if sanitizer.name == "thread":
        order = [*compiler(), "-O2", "-shared", "-fPIC", str(HERE / "openmp_order.cpp"), "-ldl"]
        subprocess.run([*order, "-o", str(folder / "openmp_order.so")], check=True)


def _write_compiler(sanitizer: Sanitizer) -> None:
    path = sanitizer.folder / "c++"
    text = f'#!/bin/sh\nexec {shlex.join(compiler())} "$@" {shlex.join(sanitizer.flags)}\n'
    if not path.exists() or path.read_text() != text:  # ninja compiles again what an other command line compiled
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)


def environment(sanitizer: Sanitizer, capability: str) -> dict[str, str]:
    """The variables of a process that runs under the sanitizer with that instruction set at most."""
    folder = sanitizer.folder
    libraries = [str(_library(name).resolve()) for name in sanitizer.libraries]
    if sanitizer.name == "thread":
        libraries.append(str(folder / "openmp_order.so"))
    options = {k: v.format(log=folder / "report", here=HERE) for k, v in sanitizer.options.items()}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RADAM_FUSED_")}
    return {
        **kept,
        **options,
        "LD_PRELOAD": os.pathsep.join(libraries),
        "PYTHONPATH": str(folder),
        "CXX": str(folder / "c++"),
        "RADAM_FUSED_CPU_ISA": capability,
    }


def command(sanitizer: Sanitizer, *arguments: str) -> list[str]:
    """A Python process; ThreadSanitizer needs its addresses where they are without randomisation."""
    python = [sys.executable, *arguments]
    return ["setarch", "-R", *python] if sanitizer.name == "thread" else python
