"""examples/pretrain.py by torchrun: the losses of one process, and a run that goes on on another number of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

TINY = ["--layers=2", "--width=32", "--heads=2", "--context=32", "--batch=4", "--save-every=10"]


def pretrain(out: Path, processes: int, steps: int, device: str = "cpu") -> tuple[str, dict[int, float]]:
    """The first line, and the loss by step."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    made = subprocess.run(
        [
            *launcher,
            str(ROOT / "examples" / "pretrain.py"),
            *TINY,
            f"--device={device}",
            f"--steps={steps}",
            f"--out={out}",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    assert made.returncode == 0, made.stderr[-2000:]
    first, *lines = made.stdout.splitlines()
    return first, {line["step"]: line["loss"] for line in map(json.loads, lines)}


@pytest.mark.long
def test_any_number_of_processes(tmp_path: Path) -> None:
    first, alone = pretrain(tmp_path / "one", 1, 40)
    assert "on 1 processes (cpu), from step 0" in first
    assert alone[40] < alone[20] < 5.4
    _, half = pretrain(tmp_path / "two", 2, 40)
    assert half == {step: pytest.approx(loss, abs=1e-4) for step, loss in alone.items()}

    checkpoints = sorted((tmp_path / "two").glob("step-*"))
    for folder in checkpoints[-2:]:  # as if it had been stopped after step 20
        (folder / ".metadata").unlink()
    first, resumed = pretrain(tmp_path / "two", 2, 40)
    assert first.endswith("from step 20")
    assert resumed == {40: half[40]}
