"""The blocks of docs/trainers.md, as a rank runs them."""

from __future__ import annotations

from tests.tools import torchvision_operators  # noqa: F401  # isort: skip

import importlib
import os
import re
import sys
from typing import Any

import torch

from tests.support.paths import ROOT
from tests.tools.accelerate_runs import as_torchrun
from tests.tools.small import shared_folder


def blocks(markdown: str) -> dict[str, str]:
    """The Python block of each chapter."""
    chapters = re.split(r"^## ", markdown, flags=re.MULTILINE)[1:]
    found = {}
    for chapter in chapters:
        for block in re.findall(r"^```python\n(.*?)^```$", chapter, re.MULTILINE | re.DOTALL):
            title = chapter.partition("\n")[0]
            assert title not in found, f"{title} has several blocks"
            found[title] = block
    return found


def page() -> str:
    return (ROOT / "docs" / "trainers.md").read_text()


def run(title: str, markdown: str) -> None:
    """Runs the first block and another in one namespace, in a folder of their own."""
    as_torchrun()
    import accelerate

    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    if "deepspeed" in sys.modules or title == "DeepSpeed":
        communication: Any = importlib.import_module("deepspeed.comm.torch")
        communication.build_shm_op = lambda: None  # its own all-reduce on the CPU takes a minute to compile
    found = blocks(markdown)
    before = os.getcwd()
    os.chdir(shared_folder())
    torch.manual_seed(0)
    try:
        names: dict[str, Any] = {"__name__": "__main__"}
        for name in ("The blocks", title):
            exec(compile(found[name], f"docs/trainers.md, {name}", "exec"), names)
    finally:
        os.chdir(before)
