"""Builds the CUDA library against a CUDA build of torch and imports it: ``make cuda-check`` runs it, without a GPU.

torch comes from the package index into .venv-cuda (about 5 GB unpacked), which stays for the next time. The build is
that of a user: setup.py in a copy of the sources, every default architecture. Then the library has to load, to have
registered its operators for CUDA tensors, and `available_backends` has to say what is missing here: a GPU.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-cuda"
TORCH = {"12": "torch==2.10.0", "13": "torch==2.11.0"}
"""What the package index has for each CUDA major."""
BUILD = ("setuptools>=77,<82", "wheel", "ninja", "numpy")
SOURCES = ("csrc", "radam_fused", "setup.py", "pyproject.toml", "README.md", "LICENSE")

SOURCE_OF = {"step_native": "step", "grad_norm_native": "grad_norm", "scalars_native": "scalars"}

LOOK = """
import json, torch, radam_fused
from radam_fused import _C_cuda, cpp_helpers
names = ["step_native", "grad_norm_native", "scalars_native"]
dumps = {name: torch._C._dispatch_dump(f"radam_fused::{name}") for name in names}
key = "CUDA"
print(json.dumps({
    "torch": torch.__version__,
    "cuda": torch.version.cuda,
    "gpu": torch.cuda.is_available(),
    "library": _C_cuda.__file__,
    "built_with": _C_cuda.cuda_version(),
    "architectures": _C_cuda.architectures(),
    "operators": [n for n in torch._C._dispatch_get_registrations_for_dispatch_key(key) if n.startswith("radam_fused")],
    "native": {n: [l for l in d.splitlines() if l.startswith(("CPU:", "CUDA:"))] for n, d in dumps.items()},
    "backends": radam_fused.available_backends(),
    "by_pointers": cpp_helpers.HAS_POINTER_PATH,
}))
"""


def run(*command: object, **environment: str) -> str:
    """Output of a command, which must succeed."""
    done = subprocess.run(
        [*map(str, command)],
        cwd=tempfile.gettempdir(),
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        print(done.stdout)
        sys.exit(f"failed: {' '.join(map(str, command))}")
    return done.stdout


def environment() -> Path:
    """The Python of .venv-cuda, with a torch for the CUDA major of nvcc in it."""
    major = re.search(r"release (\d+)\.", run("nvcc", "--version"))[1]
    python = ENVIRONMENT / "bin" / "python"
    wanted = TORCH[major]
    if not python.exists():
        run(sys.executable, "-m", "venv", ENVIRONMENT)
    installed = run(python, "-m", "pip", "list", "--format=freeze")
    if wanted not in installed.replace("+", "\n"):
        print(f"installing {wanted} for CUDA {major} into {ENVIRONMENT.name}", flush=True)
        run(python, "-m", "pip", "install", "--quiet", wanted)
    run(python, "-m", "pip", "install", "--quiet", *BUILD)
    return python


def processor_time() -> float:
    """Seconds that processes started here have computed for, over all cores."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def build(python: Path) -> tuple[float, float]:
    """Installs the package as a user would; returns the seconds that takes, and those of two free cores."""
    with tempfile.TemporaryDirectory() as folder:
        for name in SOURCES:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, Path(folder, name), ignore=shutil.ignore_patterns("*.so", "__pycache__"))
            else:
                shutil.copy(source, folder)
        start, before = time.perf_counter(), processor_time()
        install = ("-m", "pip", "install", "--quiet", "--force-reinstall", "--no-build-isolation", "--no-deps", folder)
        run(python, *install, FORCE_CUDA="1", MAX_JOBS="2")
        return time.perf_counter() - start, (processor_time() - before) / 2


def main() -> int:
    if shutil.which("nvcc") is None:
        sys.exit("make cuda-check compiles CUDA code (it runs none): put the nvcc of a CUDA toolkit on PATH")
    python = environment()
    taken, seconds = build(python)
    found = json.loads(run(python, "-c", LOOK).splitlines()[-1])
    print(f"\nBuilt in {taken:.0f} s (two jobs; two cores' time {seconds:.0f} s) against torch {found['torch']}")
    print(f"  loaded {Path(found['library']).name}")
    print(f"  CUDA {found['built_with']}, architectures {found['architectures']}")
    print("  operators with a CUDA kernel: " + ", ".join(found["operators"]))
    for name, lines in found["native"].items():
        for line in lines:
            print(f"  {name} on {line}")
    print(f"  available_backends()['cuda']: {found['backends']['cuda']}\n")

    wrong = []
    for name, lines in found["native"].items():
        source = f"csrc/cuda/{SOURCE_OF[name]}.cpp"
        if not any(line.startswith("CUDA:") and source in line for line in lines):
            wrong.append(f"{name} has no CUDA kernel, or not the one of {source}")
    if not found["by_pointers"]:
        wrong.append("a step cannot take the pointer path with this torch (csrc/python/pointer_table.cpp)")
    reason = found["backends"]["cuda"]
    if (reason is None) != found["gpu"] or (reason is not None and "torch sees no GPU" not in reason):
        wrong.append(f"available_backends() should say that torch sees no GPU; it says {reason!r}")
    print("\n".join(wrong) if wrong else "the CUDA library builds, links, loads and registers")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
