"""The rooms of csrc: which may include which, how deep headers include one another, and what each may know of."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).parents if (folder / "csrc").is_dir())
MAY_INCLUDE = {
    "numerics": {"numerics"},
    "args": {"args", "numerics"},
    "cpu": {"cpu", "args", "numerics"},
    "cpu/avx512": {"cpu/avx512", "cpu", "numerics"},
    "cuda": {"cuda", "args", "numerics"},
    "python": {"python", "cpu", "args", "numerics"},
    "python/cuda": {"cuda"},
}
"""For each folder, those whose headers its files may include."""
ROOM_LEVELS = 5
HEADER_LEVELS = 5
MAX_LINES = 320
COPIED_VECTOR = r"mem(?:cpy|move)\([^,]*,[^,]*[.>]data\(\),"
"""An empty vector has no memory, and memcpy takes no null pointer: `copy_values` of cuda/segment_table.h asks first."""


def room(file: str) -> str:
    return file.rpartition("/")[0]


def problems(csrc: Path) -> list[str]:
    """What is wrong with the includes of the files below a folder."""
    texts = {p.relative_to(csrc).as_posix(): p.read_text() for p in sorted(csrc.rglob("*")) if p.is_file()}
    includes = {file: re.findall(r'^#include "([^"]+)"', text, re.MULTILINE) for file, text in texts.items()}
    found = []
    for file, text in texts.items():
        outside = re.findall(r"^#include <([^>]+)>", text, re.MULTILINE)
        if room(file) not in MAY_INCLUDE:
            found.append(f"{file}: in no room")
            continue
        if len(text.splitlines()) > MAX_LINES:
            found.append(f"{file}: more than {MAX_LINES} lines")
        if any(re.search(COPIED_VECTOR, line) and "!from.empty()" not in line for line in text.splitlines()):
            found.append(f"{file}: memcpy from a vector that may be empty")
        if "Python.h" in outside and not room(file).startswith("python"):
            found.append(f"{file}: includes Python.h")
        if room(file) == "numerics" and any(re.match("torch|cuda|ATen|c10", header) for header in outside):
            found.append(f"{file}: numerics knows neither torch nor CUDA")
        for header in includes[file]:
            if header not in texts:
                found.append(f"{file}: {header} is not there, by its path from csrc/")
            elif room(header) not in MAY_INCLUDE[room(file)]:
                found.append(f"{file}: {room(file)} may not include {header}")
    if not found:
        deepest = max((level(file, includes, ()) for file in includes if file.endswith((".h", ".cuh"))), default=0)
        if deepest > HEADER_LEVELS:
            found.append(f"headers include one another on {deepest} levels")
    return found


def level(file: str, includes: dict[str, list[str]], above: tuple[str, ...]) -> int:
    """One more than the deepest of what a file includes; more than any limit where files include each other."""
    if file in above:
        return 1000
    return 1 + max((level(header, includes, (*above, file)) for header in includes[file]), default=0)


def test_rooms_of_csrc_include_each_other_in_one_direction() -> None:
    assert problems(ROOT / "csrc") == []
    assert level("python", {name: sorted(others - {name}) for name, others in MAY_INCLUDE.items()}, ()) <= ROOM_LEVELS


@pytest.mark.parametrize(
    ("file", "line", "problem"),
    [
        ("cpu/step.cpp", '#include "cuda/tile_loop.h"', "cpu may not include cuda/tile_loop.h"),
        ("cuda/tile_loop.h", '#include "cpu/prefetch.h"', "cuda may not include cpu/prefetch.h"),
        ("numerics/dtypes.h", '#include "args/segment.h"', "numerics may not include args/segment.h"),
        ("numerics/dtypes.h", "#include <torch/csrc/stable/tensor.h>", "neither torch nor CUDA"),
        ("args/segment.h", "#include <Python.h>", "includes Python.h"),
        ("args/segment.h", '#include "../numerics/dtypes.h"', "by its path from csrc/"),
        ("numerics/dtypes.h", '#include "numerics/radam_update.h"', "on 100"),
        ("numerics/dtypes.h", "\n" * MAX_LINES, "more than 320 lines"),
        ("cuda/table_cache.h", "std::memcpy(to, values.data(), values.size());", "a vector that may be empty"),
    ],
)
def test_what_a_room_may_not_include_is_noticed(tmp_path: Path, file: str, line: str, problem: str) -> None:
    copy = Path(shutil.copytree(ROOT / "csrc", tmp_path / "csrc"))
    (copy / file).write_text(f"{line}\n{(copy / file).read_text()}")
    found = problems(copy)
    assert len(found) == 1
    assert problem in found[0]
