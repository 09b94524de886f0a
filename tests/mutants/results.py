"""What came of the mutants: counts for each module, and the survivors beside the reasons that are written down."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

REASONS = Path("tests/mutants/survivors.json")
KILLED = {1: "killed", -24: "killed", 24: "killed", 152: "killed", -6: "killed", -11: "killed"}
"""By exit code: a test failed, the mutant never ended (SIGXCPU), or it ended the process."""
NOT_TRIED = "not tried"
SURVIVED = {0: "survived", 33: "no test", None: NOT_TRIED}
UNCLEAR = "unclear"
"""Any other exit code: the runner itself failed."""


@dataclass(frozen=True)
class Mutant:
    """One change of one function."""

    name: str
    """mutmut's: the function, and the change's number in it."""
    path: Path
    fate: str

    @property
    def function(self) -> str:
        return re.sub(r"(x_|xǁ)([^.]*)$", r"\2", self.name.partition("__mutmut_")[0]).replace("ǁ", ".")


@dataclass(frozen=True)
class Reason:
    """Why some mutants may survive: those of functions, of lines, or of changed lines that match."""

    function: str
    was: str
    becomes: str
    reason: str

    def holds(self, function: str, was: str, becomes: str) -> bool:
        return (
            re.fullmatch(self.function, function) is not None
            and re.search(self.was, was) is not None
            and re.search(self.becomes, becomes) is not None
        )


def fate(code: int | None) -> str:
    return KILLED.get(code) or SURVIVED.get(code, UNCLEAR)  # type: ignore[arg-type]


def all_mutants(folder: Path = Path("mutants")) -> Iterator[Mutant]:
    for meta in sorted(folder.rglob("*.py.meta")):
        path = meta.relative_to(folder).with_suffix("")
        for name, code in json.loads(meta.read_text())["exit_code_by_key"].items():
            yield Mutant(name, path, fate(code))


def read_reasons(path: Path = REASONS) -> list[Reason]:
    return [
        Reason(one["function"], one.get("was", ""), one.get("becomes", ""), group["reason"])
        for group in json.loads(path.read_text())
        for one in group["mutants"]
    ]


def changed_lines(diff: str) -> tuple[str, str]:
    """The lines that a mutant takes away, and those that it puts there, without the indentation."""
    lines = [line for line in diff.splitlines() if line[:3] not in ("---", "+++")]
    return tuple("\n".join(line[1:].strip() for line in lines if line[:1] == sign) for sign in "-+")  # type: ignore[return-value]


def reason_of(mutant: Mutant, lines: tuple[str, str], reasons: Sequence[Reason]) -> str | None:
    return next((one.reason for one in reasons if one.holds(mutant.function, *lines)), None)


def table(mutants: Sequence[Mutant], reasons: Mapping[str, str | None]) -> str:
    """A line for each module, in Markdown."""
    modules: dict[Path, Counter[str]] = {}
    for mutant in mutants:
        counts = modules.setdefault(mutant.path, Counter())
        counts[mutant.fate] += 1
        counts["all"] += 1
        counts["reasons"] += reasons.get(mutant.name) is not None
    rows = [(str(path), counts) for path, counts in modules.items()]
    rows.append(("all", sum(modules.values(), Counter())))
    lines = ["| module | mutants | tried | killed | share | survivors with a reason | without |", "| --- " * 7 + "|"]
    for name, counts in rows:
        tried = counts["all"] - counts[NOT_TRIED]
        left = tried - counts["killed"] - counts["reasons"]
        share = f"{100 * counts['killed'] / tried:.1f} %" if tried else ""
        numbers = (f"{n:,}" for n in (counts["all"], tried, counts["killed"]))
        lines.append(f"| `{name}` | {' | '.join(numbers)} | {share} | {counts['reasons']:,} | {left:,} |")
    return "\n".join(lines)
