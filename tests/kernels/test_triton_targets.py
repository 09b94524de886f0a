"""Launch options that a target's compiler knows: AMD's knows no limit of registers, and a launch with one raises."""

from __future__ import annotations

import subprocess
import sys

import pytest

LAUNCHES = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from radam_fused.backends.triton import compat as triton_compiler, grad_norm as triton_grad_norm, step as backend

class Driver:
    def get_current_target(self): return GPUTarget("hip", "gfx942", 64)
    def get_current_device(self): return 0
    def get_current_stream(self, device=0): return 0
    class launcher_cls:
        def __init__(self, *args): raise SystemExit("started")

driver.set_active(Driver())
{limit}
backend.require = triton_grad_norm.require = lambda *args: None
backend.programs = lambda *args: 8
torch.cuda.device_of = lambda tensor: __import__("contextlib").nullcontext()
{launch}
"""
STEP = """
from radam_fused.backends.operator_args import StepArgs
from radam_fused.numerics.layout import layout_hash
state, dtype = torch.{state}, torch.{dtype}
backend.step(StepArgs(
    [torch.ones(4096, dtype=dtype)], [torch.ones(4096, dtype=dtype)],
    torch.zeros(4096, dtype=state), torch.zeros(4096, dtype=torch.uint8 if state == torch.int8 else state),
    torch.tensor([[0, layout_hash([4096], [1])]]), torch.zeros(1, dtype=torch.int64),
    torch.zeros(1, 11, dtype=torch.float64), False, torch.zeros(2, 16) if state == torch.int8 else None,
))
"""
LAUNCH = {
    "squares": "triton_grad_norm.grad_norm([torch.ones(4096)])",
    "fp32": STEP.format(state="float32", dtype="float32"),
    "bf16": STEP.format(state="float32", dtype="bfloat16"),
    "bf16_moments": STEP.format(state="bfloat16", dtype="bfloat16"),
    "int8_moments": STEP.format(state="int8", dtype="float32"),
}


def run(launch: str, limit: str = "") -> str:
    """What a process says that starts a kernel on an AMD GPU which a stand-in for the driver plays."""
    environment = {"TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""}
    code = LAUNCHES.format(launch=launch, limit=limit)
    import os

    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    ).stderr


@pytest.mark.parametrize("launch", LAUNCH.values(), ids=LAUNCH)
def test_kernels_start_on_amd(launch: str) -> None:
    """They are compiled for gfx942, and stop at the launcher, which would need the driver."""
    assert run(launch).strip().endswith("started")


def test_a_limit_of_registers_is_refused_there() -> None:
    """The negative control: with NVIDIA's option no kernel gets that far."""
    limit = 'backend.register_limit = lambda count: {"maxnreg": count}'
    assert "maxnreg was specified but unrecognised" in run(LAUNCH["fp32"], limit)
