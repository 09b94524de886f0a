"""torch's own fused Adam, read as the kernels of this package are: the baseline in the table of ``make cuda-check``.

Of torch's CUDA library a cubin is extracted for each architecture that has the kernel, so it takes a CUDA build of
torch, but no GPU. Where none is installed the table has no such rows, and says so.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import cuda_budgets
from cuda_paths import parse, shortest_turn
from cuda_sass import ARCHITECTURES, ROOT, Code, tool

ELEMENTS = 4
"""Of a thread in one turn: torch's kILP."""
KERNEL = re.compile(r"multi_tensor_apply_kernel\S*FusedAdamMathFunctor\w*?I(f|N3c108BFloat16E)Li4E\S*MODEE(\d)E")
DTYPES = {"f": "fp32", "N3c108BFloat16E": "bf16"}
BYTES = {"fp32": 4, "bf16": 2}
MOVES = 7
"""Arrays that a step reads or writes; torch's moments have the parameters' dtype."""
MODES = {"0": "Adam", "1": "AdamW"}


def library(folder: Path | None) -> Path | None:
    """The CUDA library of a torch: of this folder, or of .venv-cuda."""
    roots = [folder] if folder else [*(ROOT / ".venv-cuda").glob("lib/python3*/site-packages/torch")]
    found = [path for root in roots for path in root.glob("**/libtorch_cuda.so")]
    return found[0] if found else None


def version_of(path: Path) -> str:
    text = (path.parents[1] / "version.py").read_text()
    return re.search(r"__version__ = '([^']*)'", text)[1]


def run(*command: object, folder: str | None = None) -> str:
    return subprocess.run([*map(str, command)], cwd=folder, check=True, capture_output=True, text=True).stdout


def kernels(path: Path, arch: int) -> list[tuple[str, Code]]:
    """The fused Adam of each dtype on one architecture: the forms that take a learning rate as a number."""
    dump = tool("cuobjdump")
    with tempfile.TemporaryDirectory() as folder:
        run(dump, "-xelf", "all", "-arch", f"sm_{arch}", path, folder=folder)
        found = []
        for cubin in sorted(Path(folder).glob("*.cubin")):
            if b"FusedAdamMathFunctor" not in cubin.read_bytes():
                continue
            sass, usage = run(dump, "-sass", cubin), run(dump, "-res-usage", cubin)
            for part in sass.split("Function : ")[1:]:
                mangled = part.split()[0]
                if (kind := KERNEL.search(mangled)) is None:
                    continue
                numbers = re.search(rf"{mangled}:\s*REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage).groups()
                instructions = [one.name for one in parse(part)]
                title = f"torch {MODES[kind[2]]}, fused, {DTYPES[kind[1]]}"
                found.append((title, Code(mangled, arch, *map(int, numbers), instructions, 0, part)))
    return found


def budget(title: str, code: Code) -> cuda_budgets.Row | None:
    """Of the loop over aligned elements, whose loads are as wide as four of them. Its stores have predicates."""
    size = BYTES[title.rsplit(" ", 1)[1]]
    sass = re.sub(r"(LDG|STG)\.E\.(128|64) ", r"\1.E.EF.\2 ", code.sass)
    width = 32 * size
    work = {"load128": 0, f"load{width}": 4, "root": ELEMENTS, "reciprocal": 2 * ELEMENTS}
    turn = shortest_turn(parse(sass), work, f"load{width}")
    if turn is None:
        return None
    loaded = cuda_budgets.bytes_loaded(turn)
    blocks = cuda_budgets.blocks_of(code.registers) // 4 * 4  # torch's have 512 threads, four times as many
    return cuda_budgets.row(code, title, MOVES * size, loaded, len(turn) / ELEMENTS, blocks=blocks)


def add(rows: list[cuda_budgets.Row], folder: Path | None) -> str | None:
    """Adds torch's kernels to the table; the version of torch, or None where there is no CUDA build of it."""
    path = library(folder)
    if path is None:
        print("\ntorch's fused Adam: no CUDA build of torch in .venv-cuda, so it is not in the table")
        return None
    for arch in ARCHITECTURES:
        found = {title: made for title, code in kernels(path, arch) if (made := budget(title, code)) is not None}
        rows += found.values()
    return version_of(path)
