"""The interpreter runs other threads while a launch on a GPU waits for room in its queue."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from radam_fused.cpp_helpers import HAS_POINTER_PATH
from tests.support.cuda_host import compiler

HERE = Path(__file__).parent

STEP = """
import ctypes, sys, threading, time
from types import SimpleNamespace

import torch
from radam_fused import cpp_helpers
from radam_fused.backends import ops
from radam_fused.step import pointer_table
from radam_fused.numerics.layout import layout_hash

library = ctypes.PyDLL(sys.argv[1])  # whose functions keep the interpreter's lock
library.is_launching.restype = library.has_waited_in_vain.restype = ctypes.c_bool
cpp_helpers.NATIVE_DEVICE["meta"] = 14  # torch's number of it (c10/core/DeviceType.h)
params = [torch.nn.Parameter(torch.empty(0, device="meta")) for _ in range(3)]
for p in params:
    p.grad = torch.empty(0, device="meta")
bucket = SimpleNamespace(
    device=SimpleNamespace(type="meta", index=params[0].get_device()), length=0,
    dtype=torch.float32, exp_avg=torch.empty(0, device="meta"),
    exp_avg_sq=torch.empty(0, device="meta"), scales=None, master=None, stochastic=False,
)
segments = torch.tensor([[0, layout_hash([0], [1])]] * 3)
pairs = pointer_table.PointerTable(bucket, params, segments, torch.zeros(3, dtype=torch.int64), None)


def make_room():
    while not library.is_launching():
        time.sleep(0.001)
    library.make_room()


other = threading.Thread(target=make_room, daemon=True)
other.start()
assert pairs.step(torch.zeros(1, 11, dtype=torch.float64), False, None)
assert library.is_launching()
print("in vain" if library.has_waited_in_vain() else "another thread ran")
"""


def build(folder: Path) -> Path:
    library = folder / "held_launch.so"
    headers = [f"-isystem{path}" for path in cpp_extension.include_paths()]
    flags = ("-std=c++17", "-O1", "-shared", "-fPIC", "-DTORCH_TARGET_VERSION=0x020a000000000000")
    source, torch_library = str(HERE / "held_launch.cpp"), f"{torch.__path__[0]}/lib"
    linked = (f"-L{torch_library}", f"-Wl,-rpath,{torch_library}", "-ltorch_cpu")
    subprocess.run([*compiler(), *flags, *headers, source, *linked, "-o", str(library)], check=True)
    return library


@pytest.mark.skipif(not HAS_POINTER_PATH, reason="the pointer path does not work with this torch")
def test_another_thread_runs_while_a_launch_waits(tmp_path: Path) -> None:
    """In a process of its own, as the stand-in stays registered."""
    done = subprocess.run(
        [sys.executable, "-c", STEP, str(build(tmp_path))], capture_output=True, text=True, check=False
    )
    assert done.stdout == "another thread ran\n", done.stderr
