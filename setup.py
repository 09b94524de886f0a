"""Builds the native part of radam_fused; everything that does not depend on the machine is in pyproject.toml.

``radam_fused/_C.abi3.so`` uses the LibTorch stable ABI and CPython's limited API: one file works with torch 2.10 and
later, CPython 3.10 and later. Without a C++ compiler, and on a free-threaded CPython, which has no limited API, the
package installs without it and has the Python backends only.
A compiler that fails makes the build fail.

``radam_fused/_C_cuda.abi3.so`` is the same for NVIDIA GPUs. It is built if torch is a CUDA build and nvcc is installed,
with or without a GPU. It works with one CUDA major version. It is a file of its own, so that either loads without the
other.

Environment: ``CXX`` names the compiler; ``RADAM_FUSED_NO_EXTENSION=1`` asks for the Python backends only;
``RADAM_FUSED_NO_CUDA=1`` leaves the CUDA library out, ``FORCE_CUDA=1`` fails where it cannot be built; ``CUDA_HOME``
and ``TORCH_CUDA_ARCH_LIST`` mean what they mean to torch; ``MAX_JOBS`` limits the compilers that run at once.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools
from setuptools import setup

ROOT = Path(__file__).resolve().parent
TORCH_TARGET_VERSION = "0x020a000000000000"  # the stable ABI as of torch 2.10, the oldest torch the binary runs on
MIN_CPYTHON = "0x030a0000"  # 3.10, the cp310 of the wheel's tag

# The numeric contract (docs/design.md) allows no contraction into FMA, no flush to zero and no reassociation: never
# -ffast-math. Wider instruction sets are chosen at run time, so that a wheel runs on older machines: never
# -march=native. Nothing here reads errno or the floating-point exception flags, which vectorisation must not keep.
NUMERIC_FLAGS = ["-fno-fast-math", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
CXX_FLAGS = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden", *NUMERIC_FLAGS, "-Wall", "-Wextra"]
NVCC_NUMERIC_FLAGS = ["-fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true"]
NVCC_FLAGS = ["-O3", "-std=c++17", *NVCC_NUMERIC_FLAGS, "-Xfatbin=-compress-all"]
CUDA_ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0")  # what nvcc knows of them, and PTX of the last


def find_compiler():
    """The C++ compiler as a command line (``CXX``, else the first on PATH), and, where it is None, what was missing."""
    named = os.environ.get("CXX", "").strip()
    if named:
        if shutil.which(shlex.split(named)[0]):
            return named, None
        raise SystemExit(
            f"radam_fused: CXX names {named!r}, which is not there. Name a C++ compiler, unset it, or set\n"
            "  RADAM_FUSED_NO_EXTENSION=1 for an install without the extension."
        )
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return name, None
    return None, "no C++ compiler (CXX is not set, and c++, g++ and clang++ are not on PATH)"


def sources(*patterns):
    """The files below ``csrc/`` that match, relative to the root, sorted."""
    return sorted(path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(f"csrc/{pattern}"))


def plan():
    """What to build here: arguments for ``setup()``, and lines to print for the user."""
    if os.environ.get("RADAM_FUSED_NO_EXTENSION", "0") not in ("", "0"):
        return {}, [python_only("RADAM_FUSED_NO_EXTENSION is set")]
    if sys.platform == "win32":
        return {}, [python_only("its C++ code is not written for Windows")]
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return {}, [python_only("this CPython is free-threaded, which has no limited API")]
    compiler, missing = find_compiler()
    if compiler is None:
        return {}, [python_only(missing)]
    os.environ["CXX"] = compiler  # torch's ninja file would use `c++` even if it does not exist

    try:
        from torch.utils import cpp_extension
    except ImportError as error:
        raise SystemExit(
            f"radam_fused: the C++ extension is built against torch, which this Python cannot import ({error}).\n"
            "  pip install 'torch>=2.10' first, or let pip do so (drop --no-build-isolation), or set\n"
            "  RADAM_FUSED_NO_EXTENSION=1 for an install without the extension."
        ) from error

    cpp_extension.min_supported_cpython = MIN_CPYTHON
    torch_headers = [f"-isystem{path}" for path in cpp_extension.include_paths()]  # no warnings of theirs
    cpu = cpp_extension.CppExtension(
        "radam_fused._C",
        sources("args/*.cpp", "cpu/**/*.cpp", "python/*.cpp"),
        include_dirs=[str(ROOT / "csrc")],
        depends=sources("**/*.h"),
        extra_compile_args=[*CXX_FLAGS, *torch_headers, f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"],
        py_limited_api=True,
    )
    cuda, line = plan_cuda(cpp_extension, torch_headers)
    return {
        "ext_modules": [cpu, *cuda],
        "cmdclass": {"build_ext": cpp_extension.BuildExtension},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }, [line] if line else []


def is_isolated(torch_file):
    """Whether a torch is one that pip, build or uv has installed for this build alone, and not the user's."""
    return any(part.startswith(("pip-build-env-", "build-env-", "builds-v")) for part in Path(torch_file).parts)


def plan_cuda(cpp_extension, torch_headers):
    """The CUDA library, in a list that is empty if it is not built, and a line that says why it is not."""
    import torch
    from torch import version

    def on(name):
        return os.environ.get(name, "0") not in ("", "0")

    if on("RADAM_FUSED_NO_CUDA"):
        return [], None
    home = find_cuda_home(cpp_extension)
    if home is None or version.cuda is None:
        lacking = (
            f"torch {version.__version__} is a build without CUDA; install one with it (https://pytorch.org)"
            if version.cuda is None
            else f"torch is built for CUDA {version.cuda}, but nvcc is neither in CUDA_HOME nor on PATH"
        )
        if on("FORCE_CUDA"):
            raise SystemExit(f"radam_fused: FORCE_CUDA is set, but the CUDA library cannot be built: {lacking}.")
        if home is None and version.cuda is None:
            return [], None
        here = f"CUDA is here ({home}), but {lacking}" if home else lacking
        return [], f"radam_fused: built without its CUDA library: {here}. GPUs are served by the `triton` backend."

    nvcc = os.path.join(home, "bin", "nvcc")
    release = re.search(r"release (\d+)\.(\d+)", subprocess.check_output([nvcc, "--version"], text=True))
    if release is None or release[1] != version.cuda.partition(".")[0]:
        found = release[0].removeprefix("release ") if release else "an unknown version"
        if is_isolated(torch.__file__) and not on("FORCE_CUDA"):
            return [], (
                "radam_fused: built without its CUDA library: the torch of this isolated build is for CUDA "
                f"{version.cuda}, and {nvcc} is CUDA {found}. Build with --no-build-isolation against your own torch."
            )
        raise SystemExit(
            f"radam_fused: torch {version.__version__} is built for CUDA {version.cuda}, but {nvcc} is CUDA {found}: "
            "the majors must be the same.\n"
            f"  Point CUDA_HOME to a CUDA {version.cuda} toolkit, install a torch built for CUDA {found}, or set\n"
            "  RADAM_FUSED_NO_CUDA=1 for an install without the CUDA library."
        )

    cpp_extension.CUDA_HOME = home
    if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        known = subprocess.check_output([nvcc, "--list-gpu-arch"], text=True).split()
        chosen = [arch for arch in CUDA_ARCHITECTURES if f"compute_{arch.replace('.', '')}" in known]
        os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(chosen) + "+PTX"
    flags = " ".join(cpp_extension._get_cuda_arch_flags())
    made = set(re.findall(r",code=(\w+)", flags))  # what nvcc is asked to put into the library, PTX last
    code = ",".join(sorted(made, key=lambda name: (name.startswith("compute"), len(name), name)))
    target = ["-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", f"-DRADAM_FUSED_CODE={code}"]
    threads = min(4, int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1))
    library = cpp_extension.CUDAExtension(
        "radam_fused._C_cuda",
        sources("args/*.cpp", "cuda/*.cpp", "cuda/*.cu", "python/cuda/*.cpp"),
        include_dirs=[str(ROOT / "csrc")],
        depends=sources("**/*.h", "**/*.cuh"),
        extra_compile_args={
            "cxx": [*CXX_FLAGS, *torch_headers, *target],
            "nvcc": [*NVCC_FLAGS, *target, f"--threads={threads}"],
        },
        py_limited_api=True,
    )
    return [library], None


def find_cuda_home(cpp_extension):
    """The CUDA toolkit that holds nvcc and its headers, or None: torch's, or the folder that nvcc reports.

    torch takes the folder of the nvcc on PATH, which may be a link or a script outside the toolkit. A torch without
    CUDA does not search at all.
    """
    home = cpp_extension.CUDA_HOME
    if home and Path(home, "include", "cuda_runtime_api.h").exists():
        return home
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return home if home and Path(home, "bin", "nvcc").exists() else None
    plan = subprocess.run([nvcc, "--dryrun", "none.cu"], capture_output=True, text=True, check=False).stderr
    top = re.search(r"^#\$ TOP=(.+)$", plan, re.MULTILINE)
    return os.path.realpath(top[1]) if top else str(Path(nvcc).parents[1])


def python_only(reason):
    """The line that says what works without the extension."""
    return (
        f"radam_fused: built without its C++ extension: {reason}. The `cpu` backend will be missing; "
        "the Python backends (`reference`, and `triton` where Triton is installed) work."
    )


def check_setuptools():
    """Stops where setuptools cannot read pyproject.toml; without build isolation, pip installs no other."""
    if int(setuptools.__version__.partition(".")[0]) < 77:
        raise SystemExit(
            f"radam_fused: setuptools {setuptools.__version__} is older than 77: pip install 'setuptools>=77,<82' and "
            "build again (torch before 2.13 takes no setuptools from 82 on)."
        )


check_setuptools()
arguments, lines = plan()
distribution = setup(**arguments)
if distribution.have_run.get("build_py"):  # once per install: reading the metadata runs this file as well
    for line in lines:
        print(line, file=sys.stderr)
