"""Installs without a compiler, with nvcc, with a compiler that fails, or without torch: what they say and what runs."""

import re
import zipfile

import pytest
import torch

from tests.packaging.builds import (
    ONE_STEP,
    PYTHON_ONLY,
    VERSION,
    install,
    make_wheel,
    one_step,
    python_in,
    run,
    unpack,
)
from tests.support.paths import ROOT


def said(output):
    """The lines that setup.py prints for the user."""
    return [line.strip() for line in output.splitlines() if line.strip().startswith("radam_fused: ")]


def executable(path, script):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="session")
def python_only(sdist, tmp_path_factory):
    """An install on a machine without a compiler, and the build's output."""
    base = tmp_path_factory.mktemp("python_only")
    (base / "empty").mkdir()
    wheel, output = make_wheel(unpack(sdist, base / "source"), base / "out", path=[base / "empty"])
    return wheel, output, install(wheel, base / "site")


@pytest.mark.long
def test_build_without_a_compiler_says_so_and_what_is_left(python_only):
    wheel, output, _ = python_only
    (line,) = said(output)
    for part in (PYTHON_ONLY + "no C++ compiler", "CXX", "c++, g++ and clang++", "`cpu`", "`reference`", "`triton`"):
        assert part in line
    assert wheel.name == f"radam_fused-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if ".so" in name]
        assert "radam_fused/py.typed" in archive.namelist()


@pytest.mark.long
def test_install_without_a_compiler_runs_and_says_what_is_missing(python_only):
    _, _, site = python_only
    facts, output = one_step(site, "auto")
    reason = facts["backends"]["cpu"]
    assert re.search("extension is not there.*C[+][+] compiler", reason)
    assert facts["backends"]["reference"] is None
    assert f"'reference' backend (cpu: {reason}" in output


@pytest.mark.long
def test_install_without_a_compiler_refuses_the_cpu_backend(python_only):
    _, _, site = python_only
    output = python_in(site, ONE_STEP, arguments=["cpu"], fails=True)
    assert re.search("RuntimeError: .*cpu.*extension is not there", output)


@pytest.mark.long
def test_compiler_named_in_cxx_that_is_not_there(source, tmp_path, tools):
    _, output = make_wheel(source, tmp_path / "out", path=[tools], CXX="/nowhere/g++-99 -m64", fails=True)
    line, *_ = said(output)
    assert "CXX names '/nowhere/g++-99 -m64', which is not there. Name a C++ compiler, unset it" in line
    assert "Traceback" not in output


def test_setuptools_that_cannot_read_the_metadata(tools):
    """As a new environment of Python 3.11 has it, and as pip leaves it without build isolation."""
    old = "import setuptools; setuptools.__version__ = '65.5.0'; __file__ = 'setup.py'; "
    output = run("-c", f"{old}exec(open('setup.py').read())", cwd=ROOT, path=[tools], fails=True)
    assert output.strip() == (
        "radam_fused: setuptools 65.5.0 is older than 77: pip install 'setuptools>=77,<82' and build again "
        "(torch before 2.13 takes no setuptools from 82 on)."
    )


@pytest.mark.long
def test_extension_declined_in_the_environment(source, tmp_path, tools):
    wheel, output = make_wheel(source, tmp_path / "out", path=[tools], RADAM_FUSED_NO_EXTENSION="1")
    (line,) = said(output)
    assert line.startswith(f"{PYTHON_ONLY}RADAM_FUSED_NO_EXTENSION is set")
    assert wheel.name.endswith("py3-none-any.whl")


FREE_THREADED = """
import sysconfig
real = sysconfig.get_config_var
sysconfig.get_config_var = lambda name: 1 if name == "Py_GIL_DISABLED" else real(name)
"""


@pytest.mark.long
def test_a_free_threaded_cpython_has_no_limited_api(source, tmp_path, tools):
    """It is played by a CPython that says so of itself."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(FREE_THREADED)
    wheel, output = make_wheel(source, tmp_path / "out", path=[tools], PYTHONPATH=str(site))
    (line,) = said(output)
    assert line.startswith(f"{PYTHON_ONLY}this CPython is free-threaded, which has no limited API")
    assert wheel.name.endswith("py3-none-any.whl")


@pytest.mark.long
def test_compiler_that_fails_fails_the_build(source, tmp_path, tools, real_compiler):
    """It answers for its version as a working one does, and then cannot compile."""
    script = f'case "$*" in *csrc*) echo "fatal error: out of order" >&2; exit 1;; *) exec {real_compiler} "$@";; esac'
    broken = executable(tmp_path / "g++", script)
    _, output = make_wheel(source, tmp_path / "out", path=[tools], CXX=str(broken), fails=True)
    assert "fatal error: out of order" in output
    assert said(output) == []


@pytest.mark.long
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
