"""Lets the 1st, 2nd, 3rd ... allocation of a call fail, and looks at what the call leaves behind.

`python -m tests.support.failing_allocations KINDS CASE...` is run in a process of its own, into which the library of
failing_allocations.cpp is preloaded. It ends with a line of JSON, or with what was wrong.
"""

from __future__ import annotations

import collections
import ctypes
import functools
import gc
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

EXTENSION, TENSOR_MEMORY, LIBTORCH, PYTHON = 1, 2, 4, 8
"""Whose allocations fail; must match failing_allocations.cpp."""
NO_MEMORY = (MemoryError, RuntimeError)
"""What a call may raise; torch.OutOfMemoryError is a RuntimeError."""


@functools.cache
def library() -> Path:
    """The compiled library; skips the test where there is no compiler, or no way to preload it."""
    compiler = shutil.which("c++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("a C++ compiler and LD_PRELOAD are needed")
    found = Path(tempfile.mkdtemp(prefix="failing_allocations")) / "failing_allocations.so"
    source = Path(__file__).with_suffix(".cpp")
    flags = "-std=c++17", "-O1", "-fPIC", "-shared", f"-I{sysconfig.get_paths()['include']}"
    subprocess.run([compiler, *flags, source, "-o", found, "-ldl"], check=True)
    return found


def run(kinds: int, cases: Sequence[str], *options: str, timeout: float = 1800.0) -> dict[str, dict[str, int]]:
    """Runs cases in a process of its own; returns, for each, how often which outcome was seen.

    Raises:
        AssertionError: with the process' output, where an outcome is not allowed, or the process has died.
    """
    command = [sys.executable, "-X", "faulthandler", "-m", __spec__.name, str(kinds), *options, *cases]
    env = {**os.environ, "LD_PRELOAD": str(library()), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


class Allocator:
    """The preloaded library."""

    def __init__(self) -> None:
        self._library = ctypes.PyDLL(os.environ["LD_PRELOAD"])
        self._library.fail_allocation.argtypes = (ctypes.c_long, ctypes.c_int)
        self._library.fail_allocation.restype = None
        self._library.count_allocations.restype = ctypes.c_long

    def attempt(self, call: Callable[[], Any], which: int, kinds: int) -> tuple[BaseException | None, bool]:
        """Calls with one allocation failing; what was raised, and whether the call has come to that allocation."""
        error: BaseException | None = None
        made = -1
        gc.collect()
        gc.disable()
        try:
            self._library.fail_allocation(which, kinds)
            call()
        except BaseException as raised:  # looked at by the caller
            error = raised
        while made < 0:  # the allocation that fails may be one of these lines'
            try:  # noqa: SIM105  # `contextlib.suppress` allocates before it suppresses
                made = self._library.count_allocations()
            except MemoryError:
                pass
        gc.enable()
        return error, made >= which


def outcomes(allocator: Allocator, name: str, make: Callable[[], Any], kinds: int) -> dict[str, int]:
    """Lets every allocation of a case's call fail in turn.

    Args:
        allocator: the preloaded library.
        name: the case's.
        make: makes the case: `call` is what fails, `observe` returns all that it may change, `finish` goes on from
            there and returns what is there then.
        kinds: whose allocations.
    """
    make().call()  # what is made once in a process
    untouched = make()
    untouched.call()
    whole = untouched.observe()
    final = untouched.finish()
    seen: collections.Counter[str] = collections.Counter()
    for which in range(1, 100_000):
        case = make()
        before = case.observe()
        error, failed = allocator.attempt(case.call, which, kinds)
        if not failed:
            return dict(seen)
        after = case.observe()
        where = f"{name}, allocation {which}: " + "".join(traceback.format_exception(error) if error else ["no error"])
        assert error is None or isinstance(error, NO_MEMORY), where
        if after == whole:
            seen["whole"] += 1
        else:
            changed = [key for key in before if before[key] != after.get(key)]
            assert after == before, f"{changed} changed, {where}"
            assert error is not None, where
            seen["nothing"] += 1
            case.call()
        assert case.finish() == final, f"later steps differ, {where}"
    raise AssertionError(f"{name}: the call does not end")


def main(arguments: list[str]) -> None:
    from tests.support.allocation_cases import CASES, one_by_one

    kinds, names = int(arguments[0]), arguments[1:]
    if names[0] == "--one-by-one":
        one_by_one()
        names = names[1:]
    allocator = Allocator()
    gc.freeze()  # or each collection would look at all of torch
    print(json.dumps({name: outcomes(allocator, name, CASES[name], kinds) for name in names}))


if __name__ == "__main__":
    main(sys.argv[1:])
