"""One wheel, installed and tested under every torch and every CPython: ``make matrix``; no GPU.

The wheel is built once, as in a release: against the stable ABI of torch 2.10, for CPython 3.10 and later, without the
CUDA library. Each row has an environment of its own with the Triton that its torch brings along. The tests run in a
folder without the sources of the package, so that they import what the wheel has installed. Releases other than the
one of requirements/dev.txt are CUDA builds of several GB: an environment is removed once it has been tested.

With ``--results`` a row that has passed is written there and not run again, as all of them take hours: each names its
commit.

``--quick`` takes the torch of requirements/dev.txt under the CPython that runs this, and the quickest tests.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASE = re.search(r"^torch==(.+)$", (ROOT / "requirements" / "dev.txt").read_text(), re.MULTILINE)[1]
TORCH = ("2.10.0", "2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0")
PYTHON = ("3.10", "3.11", "3.12", "3.13", "3.14")
TOOLS = ("pytest", "pytest-xdist", "hypothesis", "numpy", "setuptools", "ninja", "PyYAML", "safetensors")
"""What the tests import, in the versions of requirements/dev.txt."""
FOLDERS = ("numerics", "kernels", "optimizer", "state", "step")
"""The tests of what a release of torch may change. The others look at this checkout."""
QUICK = ("tests/numerics", "tests/optimizer/test_optimizer.py", "tests/optimizer/test_torch_parity.py")
QUICK += ("tests/state/test_checkpoint.py", "tests/step/test_pointer_path.py")

LOOK = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import radam_fused
import importlib.metadata, torch
from radam_fused import _C, cpp_helpers
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"
print(json.dumps({
    "torch": torch.__version__, "triton": version("triton"), "file": radam_fused.__file__,
    "pointers": cpp_helpers.HAS_POINTER_PATH, "cpu": radam_fused.available_backends()["cpu"] or "can run",
    "warnings": [str(one.message) for one in caught if "radam_fused" in str(one.filename)],
}))
"""

HAS_TRITON = "import importlib.util; print(importlib.util.find_spec('triton') is not None)"


@dataclass
class Row:
    """What was found in one environment."""

    python: str
    torch: str
    triton: str = ""
    pointers: bool = False
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: int = 0
    note: str = ""
    commit: str = ""

    @property
    def good(self) -> bool:
        """Whether the tests ran, and none failed."""
        return self.passed > 0 and self.failed == 0 and not self.note


def run(*command: object, cwd: Path | None = None, check: bool = True, **environment: str) -> str:
    """Output of a command, both streams; ends with a message if it must succeed and does not."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "RADAM_FUSED"))}
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env=clean | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}")
    return done.stdout


def build(folder: Path) -> Path:
    """The wheel, built from a copy of the sources against the torch that runs this."""
    source = folder / "source"
    source.mkdir()
    for name in ("csrc", "radam_fused", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    command = ("-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", folder, source)
    run(sys.executable, *command, RADAM_FUSED_NO_CUDA="1")
    (wheel,) = folder.glob("*.whl")
    return wheel


def copy_of_tests(folder: Path) -> Path:
    """A checkout without the package: the tests, and the files that they read."""
    checkout = folder / "checkout"
    unwanted = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("tests", "csrc", "docs", "bench", "examples"):
        shutil.copytree(ROOT / name, checkout / name, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "setup.py"):
        shutil.copy(ROOT / name, checkout)
    return checkout


def interpreter(version: str) -> str | None:
    """The command of a CPython, or None where it is not installed."""
    here = ".".join(map(str, sys.version_info[:2]))
    found = sys.executable if version == here else shutil.which(f"python{version}")
    if found is None:
        return None
    answers = subprocess.run([found, "-c", "import venv"], capture_output=True, check=False).returncode == 0
    return found if answers else None


def environment(python: str, torch: str, wheel: Path, folder: Path) -> Path:
    """The Python of a new environment with a torch, the tests' tools and the wheel."""
    run(python, "-m", "venv", folder)
    own = folder / "bin" / "python"
    install = (own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    # The user's constraints may hold torch at another release than the row's.
    run(*install, f"torch=={torch}", PIP_CONSTRAINT=os.devnull)
    if run(own, "-c", HAS_TRITON).strip() == "False":  # a CPU build of torch brings none
        run(*install, "--constraint", ROOT / "requirements" / "dev.txt", "triton")
    run(*install, "--constraint", ROOT / "requirements" / "dev.txt", *TOOLS)
    run(*install, "--no-deps", wheel)
    return own


def json_of(python: Path, code: str) -> dict[str, object]:
    """What ``code`` prints last, away from this checkout."""
    return json.loads(run(python, "-c", code, cwd=Path(tempfile.gettempdir())).splitlines()[-1])


def tested(row: Row, own: Path, checkout: Path, targets: Sequence[str]) -> None:
    """Looks at an installation, runs the tests in it, and fills the row."""
    found = json_of(own, LOOK)
    row.triton, row.pointers = str(found["triton"]), bool(found["pointers"])
    wrong = [] if own.parents[1] in Path(str(found["file"])).parents else [f"imports {found['file']}"]
    wrong += [] if found["cpu"] == "can run" else [f"cpu: {found['cpu']}"]
    wrong += [f"at import: {text}" for text in found["warnings"]]
    command = ("-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-m", "not long", "-p", "no:cacheprovider")
    path = os.pathsep.join([str(own.parent), os.environ["PATH"]])
    output = run(own, *command, *targets, cwd=checkout, check=False, PATH=path, OMP_WAIT_POLICY="passive")
    counts = dict.fromkeys(("passed", "failed", "skipped", "errors"), 0)
    counts |= {name: int(count) for count, name in re.findall(r"(\d+) (passed|failed|skipped|error)", output[-300:])}
    row.passed, row.skipped = counts["passed"], counts["skipped"]
    row.failed = counts["failed"] + counts.get("error", 0)
    if row.failed or not row.passed:
        print("\n".join(line for line in output.splitlines() if re.match(r"FAILED|ERROR|E  ", line)) or output[-3000:])
    row.note = "; ".join(wrong)


def rows(quick: bool, versions: Sequence[str]) -> list[Row]:
    """The environments: every torch under the CPython that runs this, and every CPython with the torch of dev.txt."""
    here = ".".join(map(str, sys.version_info[:2]))
    if quick:
        return [Row(here, BASE)]
    wanted = [Row(here, torch) for torch in versions]
    return wanted + [Row(python, BASE) for python in PYTHON if python != here]


def table(found: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| CPython | torch | Triton | pointer path | passed | failed | skipped | |", "|" + " --- |" * 8]
    for row in found:
        said = row.note or ("" if row.good else "no test ran")
        path = "yes" if row.pointers else "no"
        counts = f"{row.passed:,} | {row.failed:,} | {row.skipped:,}"
        lines.append(f"| {row.python} | {row.torch} | {row.triton} | {path} | {counts} | {said} |")
    return "\n".join(lines)


def read(results: Path | None) -> list[Row]:
    """The rows of an earlier run."""
    there = results is not None and results.exists()
    return [Row(**one) for one in json.loads(results.read_text())] if there else []


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the torch of requirements/dev.txt, and few tests")
    parser.add_argument("--torch", nargs="+", default=TORCH, metavar="VERSION")
    parser.add_argument("--results", type=Path, help="a JSON file for the rows; those in it that have passed are kept")
    options = parser.parse_args(arguments)
    targets = QUICK if options.quick else [f"tests/{name}" for name in FOLDERS]
    known = {(row.python, row.torch): row for row in read(options.results) if row.good}
    commit = run("git", "-C", ROOT, "rev-parse", "--short", "HEAD", check=False).strip()
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel, checkout = build(folder), copy_of_tests(folder)
        print(f"{wheel.name}, built under torch {BASE}", flush=True)
        for row in rows(options.quick, options.torch):
            if (row.python, row.torch) in known:
                found.append(known.pop((row.python, row.torch)))
                continue
            found.append(row)
            row.commit = commit
            python = interpreter(row.python)
            if python is None:
                row.note = "not installed here"
                continue
            start, place = time.monotonic(), folder / f"python{row.python}-torch{row.torch}"
            try:
                tested(row, environment(python, row.torch, wheel, place), checkout, targets)
            except RuntimeError as error:
                print(error)
                row.note = "could not be installed"
            shutil.rmtree(place, ignore_errors=True)
            row.seconds = round(time.monotonic() - start)
            print(f"{row}", flush=True)
            if options.results:
                written = [*found, *known.values()]
                options.results.write_text(json.dumps([asdict(one) for one in written], indent=1) + "\n")
    print(table(found))
    return int(not all(row.good or row.note == "not installed here" for row in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
