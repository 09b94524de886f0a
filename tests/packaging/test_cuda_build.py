"""What setup.py decides about the CUDA library, under toolkits and torch builds that are made up here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

DECIDING = ("CUDA_HOME", "CUDA_PATH", "FORCE_CUDA", "RADAM_FUSED_NO_CUDA", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS")

# Runs setup.py with a torch that claims to be built for argv[1] ("" for none), and prints what it would build.
PLAN = """
import json, os, runpy, sys, types
import setuptools, torch
from torch.utils import cpp_extension
torch.version.cuda = sys.argv[1] or None
torch.__file__ = os.environ.get("TORCH_FILE", torch.__file__)
cpp_extension.CUDA_HOME = None
planned = {}
def setup(**arguments):
    planned.update(arguments)
    return types.SimpleNamespace(have_run={"build_py": True})
setuptools.setup = setup
runpy.run_path("setup.py")
print(json.dumps({
    "home": cpp_extension.CUDA_HOME,
    "architectures": os.environ.get("TORCH_CUDA_ARCH_LIST"),
    "extensions": {e.name: [e.sources, e.extra_compile_args] for e in planned["ext_modules"]},
}))
"""

NVCC = """#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release {release}, V{release}.88";;
  --list-gpu-arch) for arch in {architectures}; do echo "compute_$arch"; done;;
  --dryrun) echo '#$ TOP={top}' >&2;;
esac
"""


def toolkit(folder: Path, release: str = "13.0", architectures: str = "75 80 86 89 90 100 120") -> Path:
    """A CUDA toolkit and, in another folder, a script in its nvcc's place. Returns that folder."""
    home, scripts = folder / "cuda", folder / "scripts"
    for directory in (home / "bin", home / "include", home / "lib64", scripts):
        directory.mkdir(parents=True)
    for nvcc in (home / "bin" / "nvcc", scripts / "nvcc"):
        nvcc.write_text(NVCC.format(release=release, architectures=architectures, top=home / "bin" / ".."))
        nvcc.chmod(0o755)
    (home / "include" / "cuda_runtime_api.h").touch()
    return scripts


def plan(torch_cuda: str, nvcc: Path | None, fails: bool = False, **environment: str) -> tuple[dict, str]:
    """What setup.py would build, and all that it has to say."""
    clean = {key: value for key, value in os.environ.items() if key not in DECIDING}
    without = [p for p in os.environ["PATH"].split(os.pathsep) if not (Path(p) / "nvcc").exists()]
    compiler = next(p for p in map(Path, ("/usr/bin/c++", "/usr/bin/g++", "/usr/bin/clang++")) if p.exists())
    clean |= {"PATH": os.pathsep.join([*([str(nvcc)] if nvcc else []), *without]), "CXX": str(compiler)}
    done = subprocess.run(
        [sys.executable, "-c", PLAN, torch_cuda],
        cwd=ROOT,
        env=clean | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) if not fails else {}, done.stderr


def test_torch_and_nvcc_of_one_major_build_the_library(tmp_path: Path) -> None:
    planned, said = plan("13.2", toolkit(tmp_path))
    sources, arguments = planned["extensions"]["radam_fused._C_cuda"]
    assert {"csrc/cuda/step_kernel.cu", "csrc/cuda/step.cpp", "csrc/args/step_args.cpp"} <= set(sources)
    assert not any("csrc/cpu" in source for source in sources)
    for flags in arguments.values():
        assert {"-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"} <= set(flags)
    assert {"-fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true"} <= set(arguments["nvcc"])
    assert not any("fast" in flag for flag in arguments["nvcc"])
    assert "-ffp-contract=off" in arguments["cxx"]
    assert planned["home"] == str(tmp_path / "cuda")
    assert "radam_fused" not in said


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        pytest.param("75 80 86 89 90 100 120", "8.0;8.6;8.9;9.0;10.0;12.0+PTX", id="cuda_13", marks=pytest.mark.long),
        pytest.param("50 70 75 80 86 87 89 90", "8.0;8.6;8.9;9.0+PTX", id="cuda_12.4"),
        pytest.param("80", "8.0+PTX", id="only_8.0", marks=pytest.mark.long),
    ],
)
def test_default_architectures_are_those_that_nvcc_knows(tmp_path: Path, known: str, expected: str) -> None:
    planned, _ = plan("13.0", toolkit(tmp_path, architectures=known))
    assert planned["architectures"] == expected
    code = "".join(f"sm_{arch.replace('.', '')}," for arch in expected.removesuffix("+PTX").split(";"))
    newest = code.rstrip(",").rpartition("sm_")[2]
    flags = planned["extensions"]["radam_fused._C_cuda"][1]
    assert all(f"-DRADAM_FUSED_CODE={code}compute_{newest}" in given for given in flags.values())


def test_architectures_asked_for_are_honoured(tmp_path: Path) -> None:
    planned, _ = plan("13.0", toolkit(tmp_path), TORCH_CUDA_ARCH_LIST="9.0")
    assert planned["architectures"] == "9.0"
    assert "-DRADAM_FUSED_CODE=sm_90" in planned["extensions"]["radam_fused._C_cuda"][1]["cxx"]


def test_other_major_stops_and_names_both(tmp_path: Path) -> None:
    scripts = toolkit(tmp_path, release="13.0")
    _, said = plan("12.8", scripts, fails=True)
    assert "Traceback" not in said
    for part in ("CUDA 12.8", "is CUDA 13.0", "CUDA_HOME", "RADAM_FUSED_NO_CUDA=1"):
        assert part in said


@pytest.mark.long
@pytest.mark.parametrize(
    "folder",
    [
        pytest.param("/tmp/pip-build-env-x1/overlay/lib", id="pip"),
        pytest.param("/tmp/build-env-x1/lib", id="build", marks=pytest.mark.long),
        pytest.param("/home/me/.cache/uv/builds-v0/.tmpX1/lib", id="uv", marks=pytest.mark.long),
    ],
)
def test_other_major_in_an_isolated_build_builds_the_cpu_part(tmp_path: Path, folder: str) -> None:
    """The user did not choose its torch, so it is no reason to fail."""
    scripts = toolkit(tmp_path, release="13.0")
    planned, said = plan("12.8", scripts, TORCH_FILE=f"{folder}/torch/__init__.py")
    assert [*planned["extensions"]] == ["radam_fused._C"]
    (line,) = [line for line in said.splitlines() if "radam_fused" in line]
    for part in ("without its CUDA library", "CUDA 12.8", "is CUDA 13.0", "--no-build-isolation"):
        assert part in line
    plan("12.8", scripts, fails=True, TORCH_FILE=f"{folder}/torch/__init__.py", FORCE_CUDA="1")


def test_declined_in_the_environment(tmp_path: Path) -> None:
    planned, said = plan("12.8", toolkit(tmp_path, release="13.0"), RADAM_FUSED_NO_CUDA="1")
    assert [*planned["extensions"]] == ["radam_fused._C"]
    assert "radam_fused" not in said


def test_nvcc_with_a_torch_without_cuda_builds_the_cpu_part_and_says_why(tmp_path: Path) -> None:
    planned, said = plan("", toolkit(tmp_path))
    assert [*planned["extensions"]] == ["radam_fused._C"]
    for part in ("without its CUDA library", str(tmp_path / "cuda"), "is a build without CUDA", "`triton`"):
        assert part in said


def test_torch_with_cuda_but_no_nvcc_builds_the_cpu_part_and_says_why() -> None:
    planned, said = plan("13.0", None)
    assert [*planned["extensions"]] == ["radam_fused._C"]
    for part in ("without its CUDA library", "CUDA 13.0", "nvcc is neither in CUDA_HOME nor on PATH"):
        assert part in said


def test_neither_is_nothing_to_talk_about() -> None:
    planned, said = plan("", None)
    assert [*planned["extensions"]] == ["radam_fused._C"]
    assert "radam_fused" not in said


@pytest.mark.parametrize(("torch_cuda", "lacking"), [("", "build without CUDA"), ("13.0", "nvcc is neither")])
def test_force_cuda_fails_where_it_cannot(tmp_path: Path, torch_cuda: str, lacking: str) -> None:
    _, said = plan(torch_cuda, None if torch_cuda else toolkit(tmp_path), fails=True, FORCE_CUDA="1")
    assert "Traceback" not in said
    assert "FORCE_CUDA is set, but the CUDA library cannot be built" in said
    assert lacking in said
