"""The shortest turn of a kernel's loop that does given work, read from the machine code: what most elements take.

Kernels branch around rare values and choose between formats at run time, so the instructions of a kernel say little. A
turn is a way through the code from a block of wide loads back to itself. Which work it has to do is given by counts of
marks: instructions that nothing else has. What has a predicate counts as executed, and as no mark.
"""

from __future__ import annotations

import heapq
import re
from dataclasses import dataclass

LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+((?:@!?U?P\w+\s+)?)([A-Z][A-Z0-9_.]*)([^;]*);")
MARKS = {
    "load128": re.compile(r"LDG\.E\.EF\.128 "),
    "load64": re.compile(r"LDG\.E\.EF\.64 "),
    "store128": re.compile(r"STG\.E\.EF\.128 "),
    "store64": re.compile(r"STG\.E\.EF\.64 "),
    "table": re.compile(r"LDG\.E\.128\.CONSTANT "),
    "root": re.compile(r"MUFU\.RSQ"),
    "reciprocal": re.compile(r"MUFU\.RCP"),
    "philox": re.compile(r".*(-0x2daee0ad|0xd2511f53)"),
    "pack": re.compile(r"F2FP"),
}
EXACT = ("load128", "load64", "store128", "store64")
"""Of the others a turn may have more."""


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str
    name: str
    operands: str

    @property
    def text(self) -> str:
        return f"{self.name} {self.operands}"

    @property
    def clears(self) -> bool:
        """Whether it stores zeros, which only some steps do."""
        return self.name.startswith("STG") and self.operands.endswith("RZ")


def parse(sass: str) -> list[Instruction]:
    return [Instruction(int(a, 16), p.strip(), name, rest.strip()) for a, p, name, rest in LINE.findall(sass)]


@dataclass
class _Block:
    code: list[Instruction]
    marks: tuple[int, ...]
    clears: bool
    next: list[int]


def _successors(code: list[Instruction], index: dict[int, int], at: int) -> list[int]:
    """Where the code may go on: calls are to the treatment of rare values, and no way."""
    one, after = code[at], [at + 1] if at + 1 < len(code) else []
    if one.name.startswith(("EXIT", "RET", "CALL", "BRX")):
        return after if one.predicate else []
    if not one.name.startswith("BRA"):
        return after
    target = index[int(re.search(r"0x([0-9a-f]+)\)?$", one.operands)[1], 16)]
    conditional = one.predicate or one.name.startswith("BRA.DIV") or re.match(r"!?U?P\d", one.operands)
    return [target, *after] if conditional else [target]


def _blocks(code: list[Instruction], names: list[str]) -> list[_Block]:
    index = {one.address: at for at, one in enumerate(code)}
    ways = [_successors(code, index, at) for at in range(len(code))]
    beginnings = {0}
    for at, way in enumerate(ways):
        if way != [at + 1]:
            beginnings |= {*way, at + 1}
    starts = sorted(beginning for beginning in beginnings if beginning < len(code))
    number = {start: k for k, start in enumerate(starts)}
    found = []
    for start, end in zip(starts, [*starts[1:], len(code)], strict=True):
        part = code[start:end]
        counted = [one for one in part if not one.predicate and not one.clears]
        marks = tuple(sum(bool(MARKS[name].match(one.text)) for one in counted) for name in names)
        clears = any(one.clears and not one.predicate for one in part)
        found.append(_Block(part, marks, clears, [number[to] for to in ways[end - 1]]))
    return found


def shortest_turn(
    code: list[Instruction], work: dict[str, int], start_mark: str = "load128"
) -> list[Instruction] | None:
    """The shortest turn with the marks that ``work`` counts, or None where there is no such turn.

    It begins in a block that has ``start_mark``.
    """
    names = list(work)
    blocks = _blocks(code, names)

    def more(before: tuple[int, ...], marks: tuple[int, ...]) -> tuple[int, ...] | None:
        after = []
        for name, a, b in zip(names, before, marks, strict=True):
            if name in EXACT and a + b > work[name]:
                return None
            after.append(min(a + b, work[name]))
        return tuple(after)

    best: tuple[int, list[int]] | None = None
    wide = [k for k, block in enumerate(blocks) if block.marks[names.index(start_mark)] and not block.clears]
    for start in wide:
        counted = more((0,) * len(names), blocks[start].marks)
        if counted is None:
            continue
        length = {(start, counted): len(blocks[start].code)}
        came: dict[tuple[int, tuple[int, ...]], tuple[int, tuple[int, ...]]] = {}
        queue = [(len(blocks[start].code), start, counted)]
        while queue:
            taken, here, marks = heapq.heappop(queue)
            if length[here, marks] < taken:
                continue
            if start in blocks[here].next and marks == tuple(work.values()):
                if best is None or taken < best[0]:
                    way = [(here, marks)]
                    while way[-1] in came:
                        way.append(came[way[-1]])
                    best = taken, [k for k, _ in reversed(way)]
                break
            for there in blocks[here].next:
                then = None if there == start or blocks[there].clears else more(marks, blocks[there].marks)
                if then is not None and taken + len(blocks[there].code) < length.get((there, then), 1 << 30):
                    length[there, then] = taken + len(blocks[there].code)
                    came[there, then] = here, marks
                    heapq.heappush(queue, (length[there, then], there, then))
    return None if best is None else [one for k in best[1] for one in blocks[k].code]


def loads_before_use(turn: list[Instruction]) -> bool:
    """Whether all wide loads of a turn are on their way before its first arithmetic."""
    names = [one.name for one in turn]
    arithmetic = re.compile(r"F(ADD|MUL|FMA)2?\b|MUFU|I2F|REDUX|CREDUX")
    first = next(at for at, name in enumerate(names) if arithmetic.match(name))
    return not any(MARKS["load128"].match(one.text) or MARKS["load64"].match(one.text) for one in turn[first:])


def half_sectors(turn: list[Instruction], lanes: int = 32) -> list[str]:
    """Accesses beside others of the same thread, so that a warp's request skips parts of the sectors it touches."""
    last: dict[tuple[str, str], int] = {}
    found = []
    for one in turn:
        wide = re.fullmatch(r"(LDG|STG)\.E\.EF\.(128|64)", one.name)
        if wide is None:
            continue
        register, offset = re.search(r"\[(R\d+)\.64(?:\+(-?0x[0-9a-f]+))?\]", one.operands).groups()
        at, array = int(offset or "0", 16), (wide[1], register)
        if array in last and abs(at - last[array]) < lanes * int(wide[2]) // 8:
            found.append(one.text)
        last[array] = at
    return found


def counts(turn: list[Instruction], *names: str) -> int:
    """How many operations of these names: instructions whose name ends in 2 are two of them."""
    found = [one.name.split(".")[0] for one in turn]
    return sum(found.count(name) + 2 * found.count(f"{name}2") for name in names)
