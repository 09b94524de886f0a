"""A user's script under ``mypy --strict`` and under pyright: what is right passes, and each wrong choice is refused on
its line.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SCRIPT = """\
import torch
from torch import nn

import radam_fused
from radam_fused import FusedRAdam, RectificationState, StepInBackward, available_backends, plan, step_in_backward
from radam_fused.schedules import RectifiedWarmup

model = nn.Linear(4, 4)
optimizer = FusedRAdam(model.parameters(), lr=1e-3, rectification="exact", backend="cpu", rounding="nearest")
FusedRAdam(model.parameters(), master_weights="split", state_dtype=torch.int8, max_grad_norm=1.0)
FusedRAdam(model.named_parameters(), master_weights=None, rounding="stochastic")
FusedRAdam([{"params": model.parameters(), "lr": 1e-4}])
lines: list[RectificationState] = optimizer.rectification_state()
handle: StepInBackward = step_in_backward(optimizer)
scheduler = RectifiedWarmup(optimizer, kind="exact")
reasons: dict[str, str | None] = available_backends()
found = plan(model, memory=1e9)
total: int = found[0].total
version: str = radam_fused.__version__
variance: float = radam_fused.rectification.variance(9.0, "exact")
"""

WRONG = [
    'FusedRAdam(model.parameters(), rectification="exakt")',
    'FusedRAdam(model.parameters(), master_weights="bf16")',
    'FusedRAdam(model.parameters(), rounding="up")',
    'FusedRAdam(model.parameters(), backend="gpu")',
    'FusedRAdam(model.parameters(), state_dtype="int8")',
    'FusedRAdam(model.parameters(), flatten="yes")',
    'RectifiedWarmup(optimizer, kind="exakt")',
    "lines[0].rho",
    'plan(model, memory="80 GB")',
]
FIRST_WRONG = SCRIPT.count("\n") + 1


def refused(command: list[str], path: Path) -> dict[int, str]:
    """The errors that a checker reports, by their lines."""
    ran = subprocess.run([*command, str(path)], capture_output=True, text=True, cwd=path.parent, check=False)
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    found = re.findall(rf"{re.escape(path.name)}:(\d+)(?::\d+)?(?: -)?:? error:? (.*)", ran.stdout)
    assert bool(found) == bool(ran.returncode), ran.stdout + ran.stderr
    return {int(line): message for line, message in found}


CHECKERS = {
    "mypy": lambda folder: ["--strict", "--cache-dir", str(folder / "cache")],
    "pyright": lambda folder: ["--pythonpath", sys.executable],
}


@pytest.mark.long
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_a_user_s_script(checker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(checker, reason="requirements/dev.txt has it")  # `make gpu` takes a Python as it stands
    monkeypatch.setenv("MYPYPATH", str(ROOT))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # pyright does not see through an editable install
    path = tmp_path / "script.py"
    path.write_text(SCRIPT + "\n".join(WRONG) + "\n")
    errors = refused([sys.executable, "-m", checker, *CHECKERS[checker](tmp_path)], path)
    assert sorted(errors) == list(range(FIRST_WRONG, FIRST_WRONG + len(WRONG))), errors


def test_public_names() -> None:
    """`dir` and ``*`` show what is for users, and no module that is not."""
    import radam_fused

    assert dir(radam_fused) == sorted(radam_fused.__all__)
    modules = [name for name in dir(radam_fused) if type(getattr(radam_fused, name)).__name__ == "module"]
    assert modules == ["rectification", "schedules"]
    for module in (radam_fused.rectification, radam_fused.schedules):
        assert all(hasattr(module, name) for name in module.__all__)
