"""The Triton kernels' assembly for AMD's GPUs: some kernels here, all of them in ``make triton-check``."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.codegen.amd_code import AmdCode, additions, own_additions, read
from tests.codegen.triton_check import AMD, COMPILE

EVERYWHERE = ("step", "fp32-fp32"), ("step", "fp64-fp64")
ON_TWO = ("step", "bf16-bf16"), ("stored", "fp32-fp32-int8-alone"), ("squares", "fp16"), ("rows", "fp32")
TWO = ("gfx942", "gfx1100")
"""One whose warps have 64 threads, and one of 32 that issues two operations at once."""
JOBS = [(*kernel, arch, False) for kernel in EVERYWHERE for arch in AMD]
JOBS += [(*kernel, arch, False) for kernel in ON_TWO for arch in TWO]
FUSED = [("step", "fp32-fp32", arch, True) for arch in TWO] + [("squares", "fp16", "gfx942", True)]


pytestmark = pytest.mark.long  # the compilation takes ten seconds


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str, bool], AmdCode]:
    """Kernels that were compiled once, in a process of their own."""
    folder = tmp_path_factory.mktemp("amd")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, str(COMPILE), str(folder), json.dumps(JOBS + FUSED)]
    subprocess.run(command, check=True, env=environment)
    return {job: read(folder / "-".join(map(str, job))) for job in JOBS + FUSED}


@pytest.mark.parametrize("job", JOBS, ids=["-".join(map(str, job[:3])) for job in JOBS])
def test_nothing_spills_fuses_or_flushes(job: tuple[str, str, str, bool], code: dict) -> None:
    found = code[job]
    assert found.spills == 0
    assert found.denormals == (3, 3)  # kept, as operands and as results
    assert not found.flags
    assert found.fused <= 0  # below 0 where a conversion adds too
    # A compute unit has 512 registers for each of the 64 threads of a warp, a work-group processor 1,536 of 32.
    assert found.registers <= (128 if job[2].startswith("gfx9") else 192)  # four and eight warps at once, or more


@pytest.mark.parametrize("job", FUSED, ids=["-".join(map(str, job[:3])) for job in FUSED])
def test_fusion_is_noticed(job: tuple[str, str, str, bool], code: dict) -> None:
    """The negative control: compiled with fusion allowed, additions are missing."""
    assert code[job].fused > 4


def test_vectors_and_pairs_are_counted() -> None:
    ir = "%1 = fadd <4 x float> %a, %b\n%2 = fsub contract double %c, %d"
    assert additions(ir) == 5
    assembly = "v_pk_add_f32 v[0:1]\nv_dual_add_f32 v1 :: v_dual_sub_f32 v2\nv_subrev_f32_e32 v3\nv_add_u32 v4"
    assert own_additions(assembly) == 5
