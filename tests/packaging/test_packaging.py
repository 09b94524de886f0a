"""The sdist and the wheel: what they hold, how they were compiled, and a step from each."""

import os
import re
import shlex
import shutil
import subprocess
import tarfile
import zipfile
from email.parser import Parser

import pytest

from tests.packaging.builds import PYTHON_ONLY, VERSION, install, make_wheel, one_step, unpack
from tests.support.paths import ROOT


@pytest.fixture(scope="session")
def built(sdist, tools, tmp_path_factory):
    """The wheel that a machine with a compiler and without nvcc makes of the sdist, and the build's output."""
    base = tmp_path_factory.mktemp("wheel")
    return make_wheel(unpack(sdist, base / "source"), base / "out", path=[tools])


@pytest.fixture(scope="session")
def installed(built, tmp_path_factory):
    return install(built[0], tmp_path_factory.mktemp("installed") / "site")


def test_sdist_holds_what_building_testing_and_reading_need(sdist):
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    here = {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "setup.py", "pyproject.toml"}
    here |= {"radam_fused/py.typed", "requirements/dev.txt", ".ci/run", "mkdocs.yml", "CITATION.cff", "SECURITY.md"}
    for folder in ("csrc", "radam_fused", "tests", "bench", "docs", "examples", ".github"):
        files = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file()}
        files = {name for name in files if not re.search(r"__pycache__|\.so$|/\.|/out/", name)}
        assert files, folder
        here |= files
    assert here <= names, f"missing from the sdist: {sorted(here - names)}"
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc"))]


@pytest.mark.long
def test_wheel_is_one_abi3_library_and_the_typed_package(built):
    wheel, output = built
    name, version, *tag = wheel.stem.split("-", 4)
    assert (name, version, tag[:2]) == ("radam_fused", VERSION, ["cp310", "abi3"])
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert [name for name in names if re.search(r"\.(so|pyd|dylib|a)\b", name)] == ["radam_fused/_C.abi3.so"]
    assert "radam_fused/py.typed" in names
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "radam_fused").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert {name.partition("/")[0] for name in names} == {"radam_fused", f"radam_fused-{VERSION}.dist-info"}
    assert PYTHON_ONLY not in output


@pytest.mark.long
def test_numeric_contract_in_the_compiler_flags(built):
    """No contraction, no -ffast-math, and nothing that only the machine that builds can run."""
    compiled = [line for line in built[1].splitlines() if re.search(r" -c \S*csrc/\S+\.cpp ", line)]
    assert len(compiled) == len([path for path in ROOT.glob("csrc/**/*.cpp") if path.parent.name != "cuda"])
    for line in compiled:
        flags = line.split()
        assert {"-O3", "-std=c++17", "-ffp-contract=off", "-fno-fast-math"} <= set(flags)
        assert {"-DPy_LIMITED_API=0x030a0000", "-DTORCH_TARGET_VERSION=0x020a000000000000"} <= set(flags)
        assert not [flag for flag in flags if re.match(r"-(ffast-math|Ofast|funsafe|m(arch|cpu)=native)", flag)]


@pytest.mark.long
def test_wheel_metadata(built):
    wheel, _ = built
    with zipfile.ZipFile(wheel) as archive:
        metadata = Parser().parsestr(archive.read(f"radam_fused-{VERSION}.dist-info/METADATA").decode())
        assert f"radam_fused-{VERSION}.dist-info/licenses/LICENSE" in archive.namelist()
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "BSD-3-Clause"
    requires = [re.sub(r"[\s\"']", "", line) for line in metadata.get_all("Requires-Dist")]
    assert requires == ["torch>=2.10", "triton;extra==triton"]
    assert metadata.get_all("Provides-Extra") == ["triton"]


AUDITWHEEL = [ROOT / ".venv-wheel/bin", *os.environ["PATH"].split(os.pathsep)]
RECIPE = re.search(r'^repair-wheel-command = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]


def auditwheel(command):
    path = os.pathsep.join(map(str, AUDITWHEEL))
    done = subprocess.run(shlex.split(command), env=os.environ | {"PATH": path}, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_make_wheel_repairs_as_the_recipe_of_cibuildwheel():
    command = RECIPE.format(dest_dir="dist", wheel="build/wheel/*.whl")
    assert command in (ROOT / "Makefile").read_text()


@pytest.mark.long
@pytest.mark.skipif(
    shutil.which("auditwheel", path=os.pathsep.join(map(str, AUDITWHEEL))) is None, reason="`make wheel` installs it"
)
def test_manylinux_wheel_is_installed_elsewhere_and_steps(built, tmp_path):
    status, output = auditwheel(RECIPE.format(dest_dir=tmp_path / "repaired", wheel=built[0]))
    assert status == 0, output
    (wheel,) = (tmp_path / "repaired").glob("*.whl")
    assert re.fullmatch(rf"radam_fused-{VERSION}-cp310-abi3-manylinux_2_\d+_\w+", wheel.stem)
    facts, _ = one_step(install(wheel, tmp_path / "site"), "cpu")
    assert facts["backends"]["cpu"] is None

    # The negative control: torch's libraries are found only where they are excluded.
    status, output = auditwheel(f"auditwheel repair --wheel-dir {tmp_path / 'whole'} {built[0]}")
    assert status != 0
    assert re.search(r'required library "lib(torch_cpu|c10)\.so" could not be located', output)


BY_NAME = ("_ZNK3c1010TensorImpl4gradEv", "_ZN2at6native6is_negERKNS_6TensorE")
BY_NAME += ("_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE", "_ZN2at6native12is_inferenceERKNS_6TensorE")
"""What csrc/python/libtorch_symbols.h takes of torch's C++, where it is there."""


@pytest.mark.long
def test_library_needs_nothing_of_libtorch_but_the_stable_abi(installed):
    """A C++ symbol of c10, at or torch that is not weak would tie the file to the torch it was built against."""
    symbols = subprocess.check_output(
        ["nm", "--dynamic", "--undefined-only", "--format=posix", installed / "radam_fused/_C.abi3.so"], text=True
    ).split("\n")
    kinds = {line.split()[0].partition("@")[0]: line.split()[1] for line in symbols if line}
    assert [name for name in kinds if name.startswith(("aoti_torch_", "torch_"))]
    of_torch = {name: kind for name, kind in kinds.items() if re.search(r"^_Z.*(3c10|2at\d|5torch|6caffe2)", name)}
    assert of_torch == dict.fromkeys(BY_NAME, "w")


@pytest.mark.long
@pytest.mark.parametrize("name", BY_NAME)
def test_a_torch_without_one_of_its_functions_takes_the_tensor_list_path(installed, tmp_path, name):
    site = tmp_path / "site"
    shutil.copytree(installed, site)
    library = site / "radam_fused/_C.abi3.so"
    found = library.read_bytes()
    assert name.encode() in found
    library.write_bytes(found.replace(name.encode(), name.replace("E", "X", 1).encode()))
    facts, _ = one_step(site, "cpu")
    assert facts["backends"]["cpu"] is None
    assert not facts["by_pointers"]


@pytest.mark.long
def test_installed_wheel_steps_on_the_cpu_backend(installed):
    facts, _ = one_step(installed, "cpu")
    assert facts["version"] == VERSION
    assert facts["backends"]["cpu"] is None
    assert facts["by_pointers"]
