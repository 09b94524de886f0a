"""RADAM_FUSED_POINTER_TABLE=0 sends every step through the dispatcher, with the same bits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

PROGRAM = """
import hashlib, sys, torch
from radam_fused import FusedRAdam
from radam_fused.step import run
from radam_fused.step.pointer_table import PointerTable
calls, by_pointers, by_tensor_lists = [], PointerTable.step, run._step_lists
PointerTable.step = lambda *args: calls.append(True) or by_pointers(*args)
run._step_lists = lambda *args: calls.append(False) or by_tensor_lists(*args)
digest = hashlib.sha256()
for options in ({}, {"flatten": True}, {"state_dtype": torch.int8}, {"max_grad_norm": 1.0}, {"zero_grads": True}):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(n)) for n in (3, 4097, 64)]
    opt = FusedRAdam(params, lr=float(sys.argv[1]), backend="cpu", weight_decay=0.1, **options)
    for _ in range(8):
        for p in params:
            p.grad = torch.randn(p.shape)
        opt.step()
    for p in params:
        for tensor in (p.detach(), *opt.state[p].values()):
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
print(any(calls), digest.hexdigest())
"""


def run(value: str | None, lr: float = 0.1) -> subprocess.CompletedProcess[str]:
    environment = {name: given for name, given in os.environ.items() if name != "RADAM_FUSED_POINTER_TABLE"}
    if value is not None:
        environment["RADAM_FUSED_POINTER_TABLE"] = value
    command = [sys.executable, "-c", PROGRAM, str(lr)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)


def outcome(value: str | None, lr: float = 0.1) -> tuple[str, str]:
    done = run(value, lr)
    assert done.returncode == 0, done.stderr
    took_pointers, digest = done.stdout.split()
    return took_pointers, digest


@pytest.mark.long
def test_both_ways_give_the_same_bits() -> None:
    took_pointers, digest = outcome(None)
    assert took_pointers == "True"
    assert outcome("1") == ("True", digest)
    assert outcome("0") == ("False", digest)
    assert outcome("0", lr=0.2)[1] != digest


@pytest.mark.parametrize("value", ["", "yes", "2"])
def test_another_value_is_named(value: str) -> None:
    done = run(value)
    assert done.returncode != 0
    assert f"RADAM_FUSED_POINTER_TABLE = {value!r}: must be '0' or '1'" in done.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    "files",
    [
        ["tests/optimizer/test_bad_gradients.py"],
        pytest.param(["tests/optimizer/test_optimizer.py", "tests/state/test_ownership.py"], marks=pytest.mark.long),
    ],
    ids=["gradients", "all else"],
)
def test_what_users_see_does_not_depend_on_it(files: list[str]) -> None:
    """The optimizer's own tests and those of the state, in a process that has no pointer path."""
    # A negative control, which blinds the look in C that is not taken here.
    files = [*files, "-k", "not test_an_assignment_that_is_not_seen_is_noticed"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files]
    environment = {**os.environ, "RADAM_FUSED_POINTER_TABLE": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
