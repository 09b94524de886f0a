"""Compiles the CUDA kernels and reads their machine code, without a GPU: what tests/codegen/cuda_code*.py look at."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
ARCHITECTURES = (80, 89, 90, 100, 120)


def setting(name: str) -> list[str]:
    """A list of flags in setup.py, which cannot be imported."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            return ast.literal_eval(node.value)
    raise LookupError(f"setup.py assigns no {name}")


def tool(name: str) -> str:
    """A binary tool of Triton's package, or of a CUDA toolkit on PATH."""
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        path = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / name
        if path.exists():
            return str(path)
    found = shutil.which(name)
    if found is None:
        sys.exit(f"{name} is needed: pip install triton, or put a CUDA toolkit on PATH")
    return found


@dataclass
class Code:
    """The machine code of one kernel."""

    name: str
    """Mangled."""
    arch: int
    registers: int
    stack: int
    local: int
    instructions: list[str]
    """Their names; a store of zeros has ``" RZ"`` added."""
    fused_in_ptx: int
    sass: str

    def count(self, *names: str) -> int:
        return sum(name in names for name in self.instructions)

    def problems(self, limit: int) -> list[str]:
        """What no kernel may have: more registers than its launch bounds leave, spills, and fused multiply-adds."""
        found = []
        if self.registers > limit:
            found.append(f"{self.registers} registers, but its launch bounds leave {limit}")
        spills = [name for name in self.instructions if name.startswith(("LDL", "STL"))]
        if self.stack or self.local or spills:
            found.append(f"spills: stack {self.stack}, local {self.local}, {len(spills)} accesses to local memory")
        if self.fused_in_ptx:
            found.append(f"{self.fused_in_ptx} fused multiply-adds in the PTX")
        return found


def nvcc(folder: Path, source: Path, arch: int, what: str, flags: list[str]) -> Path:
    output = folder / f"sm_{arch}.{what}"
    flags = [f"-I{source.parents[1]}", *flags, f"-arch=sm_{arch}", f"-{what}"]
    command = ["nvcc", "-O3", "-std=c++17", *flags, str(source), "-o", str(output)]
    subprocess.run(command, check=True)
    return output


def nvcc_version() -> str:
    """As "13.0.88"."""
    said = subprocess.run(["nvcc", "--version"], check=True, capture_output=True, text=True).stdout
    return re.search(r"V(\d[\d.]*)", said)[1]


def compiled(source: str, arch: int, flags: list[str], csrc: Path = CSRC) -> list[Code]:
    """The kernels of ``csrc/cuda/<source>_kernel.cu``."""
    with tempfile.TemporaryDirectory() as folder:
        path = csrc / "cuda" / f"{source}_kernel.cu"
        cubin = nvcc(Path(folder), path, arch, "cubin", flags)
        ptx = nvcc(Path(folder), path, arch, "ptx", flags).read_text()
        run = [tool("cuobjdump"), str(cubin)]
        sass = subprocess.run([*run, "-sass"], check=True, capture_output=True, text=True).stdout
        usage = subprocess.run([*run, "-res-usage"], check=True, capture_output=True, text=True).stdout
    # Those of csrc/cuda/exact_division.h say that they are: what they compute is correctly rounded.
    fused = {
        entry.split("(")[0].strip(): len(re.findall(r"fma\.r[nzmp](?!.*// exact)", entry))
        for entry in ptx.split(".entry")[1:]
    }
    kernels = []
    for part in sass.split("Function : ")[1:]:
        name = part.split()[0]
        numbers = re.search(rf"{name}:\s*REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage).groups()
        # An instruction, after its address comment and an optional predicate, and the last of its operands.
        found = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);", part)
        instructions = [
            f"{op} RZ" if op.startswith("STG") and operands.split()[-1] == "RZ" else op for op, operands in found
        ]
        # Kernels of an unnamed namespace are named after the file's path, which differs between the two.
        matching = [count for entry, count in fused.items() if plain_name(entry) == plain_name(name)]
        kernels.append(Code(name, arch, *map(int, numbers), instructions, *matching, part))
    return kernels


def plain_name(mangled: str) -> str:
    return re.sub(r"\d+_GLOBAL__N__\w*?_cu_[0-9a-f]{8}(?=\d|_)", "", mangled)


def with_code(code: Code, change: Callable[[list[str]], list[str]]) -> Code:
    """A copy of a kernel whose instructions have been changed, for negative controls."""
    return type(code)(**{**vars(code), "instructions": change([*code.instructions])})


def with_sass(code: Code, change: Callable[[str], str]) -> Code:
    """The same with its disassembly changed, of which cuda_paths.py reads the turns of loops."""
    return type(code)(**{**vars(code), "sass": change(code.sass)})


def one_by_one(sass: str) -> str:
    """A multiplication behind every load of several elements."""
    return re.sub(
        r"(/\*([0-9a-f]+)\*/\s+LDG\.E\.EF\.(?:128|64) [^;]*;)",
        lambda found: f"{found[1]} /*{int(found[2], 16) + 8:04x}*/ FMUL R1, R1, R1 ;",
        sass,
    )


def control(what: str, problems: list[str], sign: str) -> bool:
    """Whether a kernel that has been spoilt is found to be so."""
    noticed = [problem for problem in problems if sign in problem]
    print(f"  {'noticed' if noticed else 'MISSED '}  {what}: {noticed[0] if noticed else 'nothing found'}")
    return bool(noticed)
