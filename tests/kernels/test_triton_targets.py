"""The launch path of AMD's GPUs, driven by a stand-in for their driver: every kernel starts, and starts again directly.

The kernels are compiled for gfx942 or gfx1100, and launched through Triton's own launcher for AMD, whose C functions
alone are replaced.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import triton

pytestmark = pytest.mark.skipif(
    triton.__version__.startswith("3.6."), reason="the launcher of Triton 3.6 for AMD is C code that calls HIP itself"
)

LAUNCHES = """
import contextlib, sys, torch
from types import SimpleNamespace
from triton.backends.amd import driver as amd
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from radam_fused.backends.operator_args import ScalarsArgs, StepArgs
from radam_fused.backends.triton import compat, grad_norm, launch, pointer_step, scalars, step
from radam_fused.numerics.layout import PARTIAL_SUMS, layout_hash

class Argument(tuple):
    def __new__(cls, nested_tuple, type): return super().__new__(cls, (nested_tuple, type))

class Utils:
    started = []
    build_signature_metadata = staticmethod(list)
    load_binary = staticmethod(lambda name, *rest: (name, name, 64, 0, 1024))
    get_device_properties = staticmethod(lambda device: {"max_shared_mem": 65536, "cooperativeLaunch": True})

    @staticmethod
    def launch(cooperative, x, y, z, stream, function, *rest):
        annotations, signature, arguments = rest[-3:]
        given = [a for a, kind in zip(arguments, annotations, strict=True) if kind[1] == "kernel"]
        assert len(given) == len(signature), (given, signature)
        for argument, kind in zip(given, signature):
            if isinstance(argument, torch.Tensor):
                assert kind.startswith("*")
            else:
                assert isinstance(argument, (int, float)) and not (kind.startswith("*") and argument % 16)
        tensors = [argument for argument in given if isinstance(argument, torch.Tensor)]
        Utils.started.append("looked at" if tensors else "directly")

amd.PyKernelArg, amd.ARG_KERNEL, amd.ARG_CONSTEXPR = Argument, "kernel", "constant"

class Driver:
    utils, launcher_cls = Utils, amd.HIPLauncher
    def get_current_target(self): return GPUTarget("hip", ARCH, 64 if ARCH.startswith("gfx9") else 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device=0): return 0

ARCH = "ARCHITECTURE"
driver.set_active(Driver())
OVERRIDES
for module in (step, grad_norm, scalars, pointer_step):
    module.require = lambda *args: None
step.programs = pointer_step.programs = lambda *args: 8
step.INTERPRETED_TILE, step.INTERPRETED_SLICE = step.TILE, step.LOW_PRECISION_SLICE
for name, launch in LAUNCHES.items():
    Utils.started.clear()
    for _ in range(2):
        try:
            exec(launch)
        except Exception as error:
            Utils.started.append(f"{type(error).__name__}: {error}")
    print(name, *Utils.started, sep="|")
"""
STEP = """
state, dtype, count, size = torch.{state}, torch.{dtype}, {count}, 32768
step.step(StepArgs(
    [torch.ones(count, dtype=dtype)], [torch.ones(count, dtype=dtype)],
    torch.zeros(size, dtype=state), torch.zeros(size, dtype=torch.uint8 if state == torch.int8 else state),
    torch.tensor([[0, layout_hash([count], [1])]]), torch.zeros(1, dtype=torch.int64),
    torch.zeros(2, 11, dtype=torch.float64), False, torch.zeros(2, size // 256) if state == torch.int8 else None,
    {master}, {stochastic},
))
"""
SCALARS = """
scalars.scalars(ScalarsArgs(
    torch.zeros(1, 16, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.int64), torch.ones(3), torch.zeros(3),
    torch.zeros(3, dtype=torch.float64), {lr}, torch.zeros(1, PARTIAL_SUMS, dtype=torch.float64), 1.0, None, None,
))
"""


def a_step(state: str, dtype: str, master: str = "None", stochastic: bool = False, count: int = 4096) -> str:
    return STEP.format(state=state, dtype=dtype, master=master, stochastic=stochastic, count=count)


LAUNCH = {
    "grad_norm_fp32": "grad_norm.grad_norm([torch.ones(4096)])",
    "grad_norm_bf16": "grad_norm.grad_norm([torch.ones(4096, dtype=torch.bfloat16)])",
    "scalars": SCALARS.format(lr="None"),
    "scalars_lr": SCALARS.format(lr="torch.ones(1)"),
    "fp32": a_step("float32", "float32"),
    "fp64": a_step("float64", "float64"),
    "bf16": a_step("float32", "bfloat16"),
    "bf16_moments": a_step("bfloat16", "bfloat16"),
    "fp16_moments": a_step("float16", "float16"),
    "int8_moments": a_step("int8", "float32"),
    "master": a_step("float32", "bfloat16", "torch.zeros(size)"),
    "split": a_step("float32", "bfloat16", "torch.zeros(size, dtype=torch.int16)"),
    "kahan": a_step("bfloat16", "bfloat16", "torch.zeros(size, dtype=torch.bfloat16)"),
    "stochastic": a_step("float32", "bfloat16", stochastic=True),
}
COUNTED = """
from radam_fused.backends.triton.step_kernel import step_kernel
compiled = step_kernel.device_caches[0][0]
before = len(compiled)
STEPS
Utils.started.append(len(compiled) - before)
"""
"""How many kernels some steps compile, after others."""
STEPS = "\n".join(a_step("float32", "float32", count=tiles * 1024) for tiles in (1, 16, 17))
LAUNCH["tiles"] = COUNTED.replace("STEPS", STEPS)
ARCHITECTURES = {"gfx942": list(LAUNCH), "gfx1100": ["fp32", "grad_norm_fp32"]}
DRIVEN = [(arch, launch) for arch, launches in ARCHITECTURES.items() for launch in launches if launch != "tiles"]


def run(arch: str, launches: list[str], overrides: str = "") -> dict[str, list[str]]:
    """What happened in a process that makes each launch twice, on an AMD GPU which a stand-in for the driver plays."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""}
    given = f"LAUNCHES = { {name: LAUNCH[name] for name in launches}!r}\n"
    code = given + LAUNCHES.replace("OVERRIDES", overrides).replace("ARCHITECTURE", arch)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name: happened for name, *happened in (line.split("|") for line in done.stdout.splitlines())}


@pytest.fixture(scope="module")
def started() -> dict[str, dict[str, list[str]]]:
    return {arch: run(arch, launches) for arch, launches in ARCHITECTURES.items()}


@pytest.mark.long
@pytest.mark.parametrize(("arch", "launch"), DRIVEN, ids=["-".join(one) for one in DRIVEN])
def test_kernels_start_on_amd(arch: str, launch: str, started: dict[str, dict[str, list[str]]]) -> None:
    """The first launch goes through Triton's look at every argument, the second calls the compiled kernel."""
    assert started[arch][launch][-1] == "directly"
    assert set(started[arch][launch]) <= {"looked at", "directly"}


@pytest.mark.long
def test_the_number_of_tiles_compiles_nothing(started: dict[str, dict[str, list[str]]]) -> None:
    """1, 16 and 17 tiles: Triton would compile for 1 and for multiples of 16 by themselves."""
    assert started["gfx942"]["tiles"] == [*["directly"] * 3, "0"] * 2


def test_a_limit_of_registers_is_refused_there() -> None:
    """The negative control: with NVIDIA's option no kernel gets that far."""
    happened = run("gfx942", ["fp32"], 'step.register_limit = lambda count: {"maxnreg": count}')["fp32"]
    assert "maxnreg was specified but unrecognised" in happened[0]
