"""``python -m radam_fused``: what it prints of the installation and of a plan."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch

import radam_fused
from radam_fused import installation
from radam_fused.__main__ import main
from radam_fused.backends import available_backends, registry
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "planning.md"
EXAMPLES = re.findall(r"```\n\$ python -m radam_fused (plan[^\n]*)\n(.*?)```", PAGE.read_text(), re.DOTALL)
"""Each command of the page, and what it prints."""


@pytest.mark.parametrize(("command", "printed"), EXAMPLES, ids=[command for command, _ in EXAMPLES])
def test_the_page_shows_what_is_printed(command: str, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 0
    assert capsys.readouterr().out == printed


def test_the_page_has_examples() -> None:
    assert len(EXAMPLES) >= 2


def test_the_page_s_python() -> None:
    """Its snippets run as they are, and what they print is in a comment behind it."""
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(compile(snippet, PAGE.name, "exec"), {})


def test_without_a_command_it_says_what_can_run() -> None:
    """As users start it; the reasons of `available_backends` follow the names."""
    ran = subprocess.run([sys.executable, "-m", "radam_fused"], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ran.stderr == ""
    for name, reason in available_backends().items():
        can = "can run" if reason is None else re.escape(f"cannot run: {reason}")
        assert re.search(rf"^  {name} +{can}$", ran.stdout, re.MULTILINE)
    assert re.search(rf"^torch +{re.escape(torch.__version__)} ", ran.stdout, re.MULTILINE)
    assert re.search(r"^CPU instructions +(avx512|avx2|baseline|unknown without)", ran.stdout, re.MULTILINE)
    assert "plan --help" in ran.stdout


@pytest.mark.parametrize("command", ["", "plan --params 7e9", "--help"])
def test_a_reader_that_has_closed_the_pipe(command: str) -> None:
    """No traceback, and the status of a program that SIGPIPE has ended."""
    read, write = os.pipe()
    os.close(read)
    # Without a buffer the write of --help itself would fail, and argparse ignores that.
    environment = os.environ | {"PYTHONUNBUFFERED": ""}
    start = [sys.executable, "-m", "radam_fused", *command.split()]
    with open(write, "wb") as pipe:
        ran = subprocess.run(
            start, stdout=pipe, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment, check=False
        )
    assert (ran.returncode, ran.stderr) == (141, "")


def test_what_was_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "_built", lambda module: "not built")
    monkeypatch.setitem(registry._UNAVAILABLE, "cpu", lambda: "no compiler")
    text = installation.report()
    assert "unknown without the C++ extension" in text
    assert "cpu        cannot run: no compiler" in text
    assert "backend=\"auto\" steps cpu parameters with 'reference'" in text


def test_a_backend_of_the_environment_that_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RADAM_FUSED_BACKEND", "none")
    assert "RADAM_FUSED_BACKEND = 'none': must be one of" in installation.report()


def test_wrong_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["plan", "--params", "7e9", "--gpus", "0"])
    assert exit.value.code == 2
    assert "gpus = 0: must be a whole number, at least 1" in capsys.readouterr().err


def test_lines_fit_a_terminal() -> None:
    for dtype in ("fp32", "bf16", "fp16", "fp64"):
        for number in (1000, 124e6, 7e9, 70e9, 1e12):
            lines = str(radam_fused.plan(number, dtype=dtype)).splitlines()
            assert max(map(len, lines)) <= 140
