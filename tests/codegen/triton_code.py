"""Reads the machine code of compiled Triton kernels with the tools that Triton's package carries."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

TOOLS = Path(__import__("triton").__file__).parent / "backends" / "nvidia" / "bin"


@dataclass
class Code:
    instructions: Counter[str]
    registers: int
    stack: int
    local: int
    ptx: str

    def count(self, *names: str) -> int:
        return sum(n for name, n in self.instructions.items() if name in names)


def read(stem: Path) -> Code:
    cubin = f"{stem}.cubin"
    sass = subprocess.run([TOOLS / "cuobjdump", "-sass", cubin], check=True, capture_output=True, text=True).stdout
    usage = subprocess.run(
        [TOOLS / "cuobjdump", "-res-usage", cubin], check=True, capture_output=True, text=True
    ).stdout
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    # An instruction, after its address comment and an optional predicate.
    names = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", sass)
    return Code(Counter(names), numbers["REG"], numbers["STACK"], numbers["LOCAL"], Path(f"{stem}.ptx").read_text())
