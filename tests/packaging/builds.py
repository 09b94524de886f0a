"""Builds and installs of an sdist that is made from a copy of this tree.

Everything is imported from a directory of its own in a process of its own, so that nothing of the development install
can stand in for what was forgotten.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from tests.support.paths import ROOT

VERSION = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
PYTHON_ONLY = "radam_fused: built without its C++ extension: "
# Variables of the caller's environment that must not influence a build.
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
    """The sdist of a copy of this tree that also contains the library of an earlier build."""
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


ONE_STEP = """
import json, sys, torch, radam_fused
p = torch.nn.Parameter(torch.linspace(-1, 1, 1000))
p.grad = torch.linspace(1, -1, 1000)
radam_fused.FusedRAdam([p], lr=0.25, backend=sys.argv[1]).step()
facts = dict(file=radam_fused.__file__, version=radam_fused.__version__, backends=radam_fused.available_backends())
facts["by_pointers"] = radam_fused.cpp_helpers.HAS_POINTER_PATH
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
