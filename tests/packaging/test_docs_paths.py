"""Every file of the project that a document, a docstring or a comment names exists, and is named with its folder.

A document names a file in backticks, by its path from the root of the repository. A docstring or a comment may also
name it by its path from ``radam_fused`` or ``csrc`` (from the one that it is in), or a file of its own folder.
``python tests/packaging/test_docs_paths.py`` prints the names of files that do not exist.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs")
CODE = ("radam_fused", "csrc")

FOLDERS = "radam_fused|csrc|bench|tests|docs|examples|requirements|stubs"
ENDINGS = "py|pyi|h|cpp|cuh?|md|toml|txt|ya?ml|json"
A_FILE = re.compile(rf"(?<![\w./<-])(?!https?:)((?:[\w.-]+/)*[\w-]+\.(?:{ENDINGS}))(?![\w(/])(?!\.\w)")
A_FOLDER = re.compile(rf"(?<![\w./<-])((?:{FOLDERS})(?:/[\w.-]+)+/?)(?![\w(])")

ELSEWHERE = {
    # torch's and CUDA's headers, and those of the compiler
    "torch/csrc/stable/tensor.h",
    "torch/csrc/stable/library.h",
    "torch/csrc/stable/ops.h",
    "torch/csrc/stable/device.h",
    "torch/csrc/stable/accelerator.h",
    "torch/csrc/inductor/aoti_torch/c/shim.h",
    "c10/core/DeviceType.h",
    "cuda_runtime_api.h",
    "immintrin.h",
    "Python.h",
    # files of other projects by whose marks radam_fused/step/parts.py knows sharded parameters
    "torch/distributed/fsdp/_flat_param.py",
    "megatron/core/tensor_parallel/layers.py",
    "fairscale/nn/data_parallel/fully_sharded_data_parallel.py",
    "deepspeed/runtime/zero/partition_parameters.py",
    "deepspeed/moe/experts.py",
    "deepspeed/runtime/zero/stage3.py",
}
"""Files of other projects."""


def names_in_backticks(text: str) -> Iterator[tuple[int, str]]:
    """Line and name of every file or folder of the project that a Markdown text has in backticks."""
    for number, line in enumerate(text.splitlines(), 1):
        for quoted in re.findall(r"`+([^`]+)`+", line):
            yield from ((number, name) for name in _names(quoted))


def names_in_python(text: str) -> Iterator[tuple[int, str]]:
    """Line and name of every file that a Python text's docstrings and comments name."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield from ((token.start[0], name) for name in _names(token.string))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for number, line in enumerate(node.value.value.splitlines(), node.lineno):
                yield from ((number, name) for name in _names(line))


def names_in_cpp(text: str) -> Iterator[tuple[int, str]]:
    """Line and name of every file that a C++ text's comments name; its includes are left to the compiler."""
    for number, line in enumerate(text.splitlines(), 1):
        comment = re.search(r"(?://|/\*).*", line)
        if comment:
            yield from ((number, name) for name in _names(comment[0]))


def _names(text: str) -> set[str]:
    return {*A_FILE.findall(text), *(name.rstrip("./") for name in A_FOLDER.findall(text))}


def files() -> Iterator[str]:
    """The documents, and the code of the package."""
    for name in DOCUMENTS:
        found = [ROOT / name] if name.endswith(".md") else sorted((ROOT / name).glob("*.md"))
        yield from (path.relative_to(ROOT).as_posix() for path in found)
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".py", ".h", ".cpp", ".cu", ".cuh"}:
                yield path.relative_to(ROOT).as_posix()


def names(file: str, text: str) -> Iterator[tuple[int, str]]:
    """Line and name of every file that a text names."""
    read = {".md": names_in_backticks, ".py": names_in_python}.get(Path(file).suffix, names_in_cpp)
    return read(text)


def lost(file: str, text: str) -> list[str]:
    """The names in a text that no file or folder has."""
    path = ROOT / file
    tops = [ROOT] if path.suffix == ".md" else [ROOT, ROOT / Path(file).parts[0], path.parent]
    return sorted(
        f"{line}: {name}"
        for line, name in names(file, text)
        if name not in ELSEWHERE and not any((top / name).exists() for top in tops)
    )


def all_lost() -> list[str]:
    return [f"{file}:{name}" for file in files() for name in lost(file, (ROOT / file).read_text())]


def test_named_files_exist() -> None:
    assert all_lost() == []


PYTHON = '''"""See step/launch.py, or fsdp.py."""
# and step/launches.py
x = "step/no.py"
"""
A docstring as state/bucket.py has it, not
state/place.py."""
'''


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        ("docs/x.md", "see `radam_fused/optimizer.py`, optimizer.py and `csrc/cpu/`", []),
        ("docs/x.md", "see `optimizer.py` (`tests/optimise.py`)", ["1: optimizer.py", "1: tests/optimise.py"]),
        ("docs/x.md", "\n`tests/kernel/`, `radam_fused.optimiser` and `optimizer.step()`", ["2: tests/kernel"]),
        ("docs/x.md", "`python -m bench.gpu.sizes`, `model.pt`, `json.dumps`, `a/b`", []),
        ("radam_fused/x.py", PYTHON, ["1: fsdp.py", "2: step/launches.py", "6: state/place.py"]),
        ("csrc/cpu/x.h", "// must match numerics/scalars.h, step.h\n/* and\n// scalars.h */\n", ["3: scalars.h"]),
        ("csrc/x.h", '#include "nowhere.h"\n', []),
    ],
)
def test_a_lost_name_is_found(file: str, text: str, found: list[str]) -> None:
    """The negative control."""
    assert lost(file, text) == found


@pytest.mark.parametrize("suffix", [".md", ".py", ".h", ".cpp"])
def test_names_are_read(suffix: str) -> None:
    """A pattern that found nothing would let everything pass."""
    assert sum(len(list(names(file, (ROOT / file).read_text()))) for file in files() if file.endswith(suffix)) > 3


if __name__ == "__main__":
    print(*all_lost(), sep="\n")
