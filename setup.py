"""Builds the native part of radam_fused; everything that does not depend on the machine is in pyproject.toml.

``radam_fused/_C.abi3.so`` speaks the LibTorch stable ABI and CPython's limited API: one file serves torch 2.10 and
later, CPython 3.10 and later. Where it cannot be built for want of a C++ compiler, the package installs without it and
the Python backends do the work. A compiler that is there and fails, fails the build.

Environment: ``CXX`` names the compiler; ``RADAM_FUSED_NO_EXTENSION=1`` asks for the Python backends only;
``MAX_JOBS`` limits the compilers that run at once.
"""

import os
import shlex
import shutil
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
TORCH_TARGET_VERSION = "0x020a000000000000"  # the stable ABI as of torch 2.10, the oldest torch the binary runs on
MIN_CPYTHON = "0x030a0000"  # 3.10, the cp310 of the wheel's tag

# The numeric contract (docs/design.md) allows no contraction into FMA, no flush to zero and no reassociation: never
# -ffast-math. Wider instruction sets are chosen at run time, so that a wheel runs on older machines: never
# -march=native. Nothing here reads errno or the floating-point exception flags, which vectorisation must not keep.
NUMERIC_FLAGS = ["-fno-fast-math", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
CXX_FLAGS = ["-O3", "-g0", "-std=c++17", *NUMERIC_FLAGS, "-Wall", "-Wextra"]


def find_compiler():
    """The C++ compiler as a command line (``CXX``, else the first on PATH), and, where it is None, what was missing."""
    named = os.environ.get("CXX", "").strip()
    if named:
        found = shutil.which(shlex.split(named)[0])
        return (named, None) if found else (None, f"CXX names {named!r}, which is not there")
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return name, None
    return None, "no C++ compiler (CXX is not set, and c++, g++ and clang++ are not on PATH)"


def sources(*patterns):
    """The files below ``csrc/`` that match, relative to the root, sorted."""
    return sorted(path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(f"csrc/{pattern}"))


def plan():
    """What to build here: arguments for ``setup()``, and lines for whoever is installing."""
    if os.environ.get("RADAM_FUSED_NO_EXTENSION", "0") not in ("", "0"):
        return {}, [python_only("RADAM_FUSED_NO_EXTENSION is set")]
    if sys.platform == "win32":
        return {}, [python_only("its C++ code is not written for Windows")]
    compiler, missing = find_compiler()
    if compiler is None:
        return {}, [python_only(missing)]
    os.environ["CXX"] = compiler  # torch's ninja file would take `c++` whatever is there

    try:
        from torch.utils import cpp_extension
    except ImportError as error:
        raise SystemExit(
            f"radam_fused: the C++ extension is built against torch, which this Python cannot import ({error}).\n"
            "  pip install 'torch>=2.10' first, or let pip do so (drop --no-build-isolation), or set\n"
            "  RADAM_FUSED_NO_EXTENSION=1 for an install without the extension."
        ) from error

    cpp_extension.min_supported_cpython = MIN_CPYTHON
    torch_headers = [f"-isystem{path}" for path in cpp_extension.include_paths()]  # their warnings are not ours
    cpu = cpp_extension.CppExtension(
        "radam_fused._C",
        sources("*.cpp", "cpu/*.cpp"),
        include_dirs=[str(ROOT / "csrc")],
        depends=sources("**/*.h"),
        extra_compile_args=[*CXX_FLAGS, *torch_headers, f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"],
        py_limited_api=True,
    )
    lines = []
    cuda = cpp_extension.CUDA_HOME or shutil.which("nvcc")
    if cuda:
        lines.append(
            f"radam_fused: CUDA is here ({cuda}), but this version has no CUDA library to build: the extension is for "
            "the CPU only, and GPUs are served by the `triton` backend."
        )
    return {
        "ext_modules": [cpu],
        "cmdclass": {"build_ext": cpp_extension.BuildExtension},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }, lines


def python_only(reason):
    """The line that says what an install without the extension is good for."""
    return (
        f"radam_fused: built without its C++ extension: {reason}. The `cpu` backend will be missing; "
        "the Python backends (`reference`, and `triton` where Triton is installed) work."
    )


arguments, lines = plan()
distribution = setup(**arguments)
if distribution.have_run.get("build_py"):  # once an install: asking for metadata runs this file as well
    for line in lines:
        print(line, file=sys.stderr)
