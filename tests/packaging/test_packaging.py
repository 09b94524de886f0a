"""What a user gets from the source: the sdist, the wheel, and the installs without a compiler, with nvcc, and so on.

Everything is built from an sdist that was made from a copy of this tree, and imported from a directory of its own in a
process of its own, so that nothing of the development install can stand in for what was forgotten.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import torch

from tests.support.paths import ROOT

PYTHON_ONLY = "radam_fused: built without its C++ extension: "
# What the environment of whoever runs the tests must not decide.
UNSET = ("CXX", "CXXFLAGS", "CFLAGS", "CUDA_HOME", "CUDA_PATH", "PYTHONPATH", "RADAM_FUSED_NO_EXTENSION")
UNSET += ("RADAM_FUSED_BACKEND", "TRITON_INTERPRET", "FORCE_CUDA")


def run(*command, cwd, path=None, fails=False, **environment):
    """Output (both streams) of a Python command that must succeed, or must fail, with ``path`` as its PATH."""
    clean = {name: value for name, value in os.environ.items() if name not in UNSET}
    if path is not None:
        clean["PATH"] = os.pathsep.join(map(str, path))
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=clean | {"RADAM_FUSED_NO_CUDA": "1"} | environment,  # CUDA is test_cuda_build.py's
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stdout
    return done.stdout


def make_wheel(source, out, **options):
    """Builds ``source`` with pip as a user without build isolation would; returns the wheel (if any) and the output."""
    command = ("-m", "pip", "-v", "wheel", "--no-cache-dir", "--no-build-isolation", "--no-deps", "-w", out, ".")
    output = run(*command, cwd=source, **options)
    wheels = list(out.glob("*.whl"))
    assert len(wheels) == (0 if options.get("fails") else 1)
    return wheels[0] if wheels else None, output


def said(output):
    """The lines that setup.py has for whoever is installing."""
    return [line.strip() for line in output.splitlines() if line.strip().startswith("radam_fused: ")]


def install(wheel, target):
    run("-m", "pip", "install", "--no-index", "--no-deps", "--target", target, wheel, cwd=target.parent)
    return target


def python_in(target, code, arguments=(), **options):
    """Runs ``code`` against the package in ``target``, and returns its output.

    Without ``site``, whose .pth files would bring the development install's import hook: that finds submodules for any
    ``radam_fused``, so an extension that was never built would be there.
    """
    elsewhere = target.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    path = [str(target), *(entry for entry in sys.path if entry.endswith("-packages"))]
    return run("-S", "-c", code, *arguments, cwd=elsewhere, PYTHONPATH=os.pathsep.join(path), **options)


def executable(path, script):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="session")
def real_compiler():
    """The compiler that torch and setuptools would take here; the suite cannot be run without one."""
    named = os.environ.get("CXX", "").split() or ["c++", "g++", "clang++"]
    found = [where for where in map(shutil.which, named) if where]
    assert found, "these tests build a C++ extension: install g++ or clang++, or name a compiler in CXX"
    return found[0]


@pytest.fixture(scope="session")
def tools(tmp_path_factory, real_compiler):
    """A PATH with what compiling takes, and without nvcc wherever this machine keeps it."""
    folder = tmp_path_factory.mktemp("tools")
    (folder / "c++").symlink_to(real_compiler)
    for name in ("as", "ld", "ld.gold", "ld.lld", "ninja", "sh"):
        beside_python = Path(sys.executable).with_name(name)
        found = str(beside_python) if beside_python.exists() else shutil.which(name)
        if found:
            (folder / name).symlink_to(found)
    return folder


@pytest.fixture(scope="session")
def sdist(tmp_path_factory):
    """The sdist of a copy of this tree into which a library of some earlier build has strayed."""
    pytest.importorskip("build", reason="requirements/dev.txt has it")
    base = tmp_path_factory.mktemp("sdist")
    unwanted = (".git", ".venv*", ".*cache", "__pycache__", "build", "dist", "*.egg-info", "*.so", "out")
    shutil.copytree(ROOT, base / "tree", ignore=shutil.ignore_patterns(*unwanted))
    (base / "tree/radam_fused/_C.abi3.so").write_text("stale")
    run("-m", "build", "--sdist", "--no-isolation", "--outdir", base, base / "tree", cwd=base)
    (archive,) = base.glob("*.tar.gz")
    return archive


@pytest.fixture
def source(sdist, tmp_path):
    """The unpacked sdist, fresh for each build."""
    return unpack(sdist, tmp_path / "source")


def unpack(archive, where):
    with tarfile.open(archive) as tar:
        tar.extractall(where, filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(where)
    (root,) = where.iterdir()
    return root


@pytest.fixture(scope="session")
def built(sdist, tools, tmp_path_factory):
    """The wheel that a machine with a compiler and without nvcc makes of the sdist, and the build's output."""
    base = tmp_path_factory.mktemp("wheel")
    return make_wheel(unpack(sdist, base / "source"), base / "out", path=[tools])


@pytest.fixture(scope="session")
def installed(built, tmp_path_factory):
    return install(built[0], tmp_path_factory.mktemp("installed") / "site")


@pytest.fixture(scope="session")
def python_only(sdist, tmp_path_factory):
    """An install on a machine without a compiler, and the build's output."""
    base = tmp_path_factory.mktemp("python_only")
    (base / "empty").mkdir()
    wheel, output = make_wheel(unpack(sdist, base / "source"), base / "out", path=[base / "empty"])
    return wheel, output, install(wheel, base / "site")


ONE_STEP = """
import json, sys, torch, radam_fused
p = torch.nn.Parameter(torch.linspace(-1, 1, 1000))
p.grad = torch.linspace(1, -1, 1000)
radam_fused.FusedRAdam([p], lr=0.25, backend=sys.argv[1]).step()
facts = dict(file=radam_fused.__file__, version=radam_fused.__version__, backends=radam_fused.available_backends())
facts["by_addresses"] = radam_fused.cpp_helpers.DESCRIBES
print(json.dumps(facts | dict(p=p.tolist())))
"""


def one_step(target, backend):
    """What `ONE_STEP` found in ``target``, and all its output, after a check of the step itself."""
    output = python_in(target, ONE_STEP, arguments=[backend])
    facts = json.loads(output.splitlines()[-1])
    assert Path(facts["file"]).is_relative_to(target)
    p = torch.nn.Parameter(torch.linspace(-1, 1, 1000))
    p.grad = torch.linspace(1, -1, 1000)
    torch.optim.RAdam([p], lr=0.25).step()
    torch.testing.assert_close(torch.tensor(facts["p"]), p.detach(), rtol=0, atol=1e-6)
    return facts, output


def test_sdist_holds_what_building_testing_and_reading_need(sdist):
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    here = {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "setup.py", "pyproject.toml"}
    here |= {"radam_fused/py.typed", "requirements/dev.txt", ".ci/run"}
    for folder in ("csrc", "radam_fused", "tests", "bench", "docs", "examples"):
        files = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file()}
        files = {name for name in files if not re.search(r"__pycache__|\.so$|/\.|/out/", name)}
        assert files, folder
        here |= files
    assert here <= names, f"missing from the sdist: {sorted(here - names)}"
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc"))]


def test_wheel_is_one_abi3_library_and_the_typed_package(built):
    wheel, output = built
    name, version, *tag = wheel.stem.split("-", 4)
    assert (name, version, tag[:2]) == ("radam_fused", "0.1.0", ["cp310", "abi3"])
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert [name for name in names if re.search(r"\.(so|pyd|dylib|a)\b", name)] == ["radam_fused/_C.abi3.so"]
    assert "radam_fused/py.typed" in names
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "radam_fused").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert {name.partition("/")[0] for name in names} == {"radam_fused", "radam_fused-0.1.0.dist-info"}
    assert PYTHON_ONLY not in output


def test_numeric_contract_in_the_compiler_flags(built):
    """No contraction, no -ffast-math, and nothing that only the machine that builds can run."""
    compiled = [line for line in built[1].splitlines() if re.search(r" -c \S*csrc/\S+\.cpp ", line)]
    assert len(compiled) == len([path for path in ROOT.glob("csrc/**/*.cpp") if path.parent.name != "cuda"])
    for line in compiled:
        flags = line.split()
        assert {"-O3", "-std=c++17", "-ffp-contract=off", "-fno-fast-math"} <= set(flags)
        assert {"-DPy_LIMITED_API=0x030a0000", "-DTORCH_TARGET_VERSION=0x020a000000000000"} <= set(flags)
        assert not [flag for flag in flags if re.match(r"-(ffast-math|Ofast|funsafe|m(arch|cpu)=native)", flag)]


def test_wheel_metadata(built):
    wheel, _ = built
    with zipfile.ZipFile(wheel) as archive:
        metadata = Parser().parsestr(archive.read("radam_fused-0.1.0.dist-info/METADATA").decode())
        assert "radam_fused-0.1.0.dist-info/licenses/LICENSE" in archive.namelist()
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "BSD-3-Clause"
    requires = [re.sub(r"[\s\"']", "", line) for line in metadata.get_all("Requires-Dist")]
    assert requires == ["torch>=2.10", "triton;extra==triton"]
    assert metadata.get_all("Provides-Extra") == ["triton"]


BY_NAME = ("_ZNK3c1010TensorImpl4gradEv", "_ZN2at6native6is_negERKNS_6TensorE")
BY_NAME += ("_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE", "_ZN2at6native12is_inferenceERKNS_6TensorE")
"""What csrc/python/libtorch_symbols.h takes of torch's C++, where it is there."""


def test_library_needs_nothing_of_libtorch_but_the_stable_abi(installed):
    """A C++ symbol of c10, at or torch that is not weak would tie the file to the torch it was built against."""
    symbols = subprocess.check_output(
        ["nm", "--dynamic", "--undefined-only", "--format=posix", installed / "radam_fused/_C.abi3.so"], text=True
    ).split("\n")
    kinds = {line.split()[0].partition("@")[0]: line.split()[1] for line in symbols if line}
    assert [name for name in kinds if name.startswith(("aoti_torch_", "torch_"))]
    of_torch = {name: kind for name, kind in kinds.items() if re.search(r"^_Z.*(3c10|2at\d|5torch|6caffe2)", name)}
    assert of_torch == dict.fromkeys(BY_NAME, "w")


@pytest.mark.parametrize("name", BY_NAME)
def test_a_torch_without_one_of_its_functions_goes_by_lists(installed, tmp_path, name):
    site = tmp_path / "site"
    shutil.copytree(installed, site)
    library = site / "radam_fused/_C.abi3.so"
    found = library.read_bytes()
    assert name.encode() in found
    library.write_bytes(found.replace(name.encode(), name.replace("E", "X", 1).encode()))
    facts, _ = one_step(site, "cpu")
    assert facts["backends"]["cpu"] is None
    assert not facts["by_addresses"]


def test_installed_wheel_steps_on_the_cpu_backend(installed):
    facts, _ = one_step(installed, "cpu")
    assert facts["version"] == "0.1.0"
    assert facts["backends"]["cpu"] is None
    assert facts["by_addresses"]


def test_build_without_a_compiler_says_so_and_what_is_left(python_only):
    wheel, output, _ = python_only
    (line,) = said(output)
    for part in (PYTHON_ONLY + "no C++ compiler", "CXX", "c++, g++ and clang++", "`cpu`", "`reference`", "`triton`"):
        assert part in line
    assert wheel.name == "radam_fused-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if ".so" in name]
        assert "radam_fused/py.typed" in archive.namelist()


def test_install_without_a_compiler_runs_and_says_what_is_missing(python_only):
    _, _, site = python_only
    facts, output = one_step(site, "auto")
    reason = facts["backends"]["cpu"]
    assert re.search("extension is not there.*C[+][+] compiler", reason)
    assert facts["backends"]["reference"] is None
    assert f"'reference' backend (cpu: {reason}" in output


def test_install_without_a_compiler_refuses_the_cpu_backend(python_only):
    _, _, site = python_only
    output = python_in(site, ONE_STEP, arguments=["cpu"], fails=True)
    assert re.search("RuntimeError: .*cpu.*extension is not there", output)


def test_compiler_named_in_cxx_that_is_not_there(source, tmp_path, tools):
    _, output = make_wheel(source, tmp_path / "out", path=[tools], CXX="/nowhere/g++-99 -m64")
    (line,) = said(output)
    assert line.startswith(f"{PYTHON_ONLY}CXX names '/nowhere/g++-99 -m64', which is not there")


def test_extension_declined_in_the_environment(source, tmp_path, tools):
    wheel, output = make_wheel(source, tmp_path / "out", path=[tools], RADAM_FUSED_NO_EXTENSION="1")
    (line,) = said(output)
    assert line.startswith(f"{PYTHON_ONLY}RADAM_FUSED_NO_EXTENSION is set")
    assert wheel.name.endswith("py3-none-any.whl")


def test_compiler_that_fails_fails_the_build(source, tmp_path, tools, real_compiler):
    """It answers for its version as a working one does, and then cannot compile."""
    script = f'case "$*" in *csrc*) echo "fatal error: out of order" >&2; exit 1;; *) exec {real_compiler} "$@";; esac'
    broken = executable(tmp_path / "g++", script)
    _, output = make_wheel(source, tmp_path / "out", path=[tools], CXX=str(broken), fails=True)
    assert "fatal error: out of order" in output
    assert said(output) == []


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is a build with CUDA")
def test_nvcc_with_a_torch_without_cuda_is_no_obstacle(source, tmp_path, tools):
    nvcc = executable(tmp_path / "cuda/bin/nvcc", "echo 'nvcc was called' >&2; exit 1")
    wheel, output = make_wheel(source, tmp_path / "out", path=[tools, nvcc.parent], RADAM_FUSED_NO_CUDA="0")
    (line,) = said(output)
    assert str(nvcc.parents[1]) in line
    assert "is a build without CUDA" in line
    assert "nvcc was called" not in output
    with zipfile.ZipFile(wheel) as archive:
        assert "radam_fused/_C.abi3.so" in archive.namelist()


def test_torch_missing_from_the_build_environment(source, tools):
    code = "import runpy, sys; sys.modules['torch'] = None; sys.argv[1:] = ['build']; runpy.run_path('setup.py')"
    output = run("-c", code, cwd=source, path=[tools], fails=True)
    assert "Traceback" not in output
    for part in ("torch>=2.10", "--no-build-isolation", "RADAM_FUSED_NO_EXTENSION=1"):
        assert part in output
