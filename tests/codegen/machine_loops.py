"""The loops of a compiled x86 function, read from its disassembly."""

from __future__ import annotations

import re
import subprocess
from collections import deque
from pathlib import Path

MEMORY = re.compile(r"(-?0x[0-9a-f]+)?\((%\w+)(?:,(%\w+),(\d))?\)")
JUMP = re.compile(r"(j\w+)\s+([0-9a-f]+)")


class Function:
    """The instructions of a function, in AT&T syntax, and where each may go on."""

    def __init__(self, listing: str) -> None:
        found = re.findall(r"^\s*([0-9a-f]+):\t(.*?)\s*$", listing, re.MULTILINE)
        self.code = [text for _, text in found]
        at = {address: index for index, (address, _) in enumerate(found)}
        self._next: list[list[int]] = []
        for index, text in enumerate(self.code):
            jump = JUMP.match(text)
            after = [at[jump[2]]] if jump and jump[2] in at else []
            if not re.match(r"jmp|ret|ud2", text) and index + 1 < len(self.code):
                after.append(index + 1)
            self._next.append(after)

    def iteration(self, start: int) -> list[str] | None:
        """The shortest way from an instruction back to itself: one turn of its loop; None where there is none."""
        came_from: dict[int, int] = {}
        queue = deque([start])
        while queue:
            here = queue.popleft()
            for there in self._next[here]:
                if there == start:
                    way = [here]
                    while way[-1] != start:
                        way.append(came_from[way[-1]])
                    return [self.code[index] for index in reversed(way)]
                if there not in came_from:
                    came_from[there] = here
                    queue.append(there)
        return None

    def loops(self, pattern: str) -> list[list[str]]:
        """One turn of each loop that holds such an instruction, the shortest first, each once."""
        turns = (self.iteration(index) for index, text in enumerate(self.code) if re.search(pattern, text))
        different = {tuple(sorted(turn)): turn for turn in turns if turn is not None}
        return sorted(different.values(), key=len)


def functions(library: Path, name: str) -> list[Function]:
    """The functions whose demangled name contains `name`."""
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", str(library)]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    parts = re.split(r"^[0-9a-f]+ <(.*)>:$", listing, flags=re.MULTILINE)
    return [Function(body) for title, body in zip(parts[1::2], parts[2::2], strict=True) if name in title]


def loaded(turn: list[str], vector: str) -> set[str]:
    """The places that a turn reads into such registers, each once however often it is read."""
    places = set()
    for text in turn:
        found = MEMORY.search(text)
        if found and vector in text and found.end() < len(text):  # a store has its place last
            places.add(found[0])
    return places


def stored(turn: list[str], vector: str) -> list[str]:
    """The places that a turn writes such registers to."""
    found = [text for text in turn if re.search(rf"%{vector}\d+,-?\w*\(", text)]
    return [MEMORY.search(text)[0] for text in found]  # type: ignore[index]
