"""The code, its tests and its documents use the field's words, and none of the private ones that they have replaced.

A word is looked for in names as well as in prose: an underscore separates words as a space does, and so does the end of
a line. ``python tests/packaging/test_words.py [FOLDER ...]`` prints what it finds.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("radam_fused", "csrc", "bench", "tests", "docs", "examples", "README.md", "CONTRIBUTING.md", "setup.py")
CODE = ("radam_fused", "csrc", "tests")
SUFFIXES = {".py", ".h", ".cpp", ".cu", ".cuh", ".md"}
LEFT_OUT = {
    "tests/packaging/test_words.py": "it lists the words",
    "bench/results": "results keep the words of the day on which they were measured",
    "docs/paper.md": "made from the results",
}


class Word(NamedTuple):
    """A private word as a regular expression, what to use instead, and where it has no other meaning."""

    pattern: str
    instead: str
    folders: tuple[str, ...] = FOLDERS


WORDS = [
    # State and its buckets.
    Word("Placement|SeparatePlacement", "BucketManager, PerParamBuckets"),
    Word("leaders?", "representative parameter"),
    Word("histories", "step-count classes"),
    Word("fingerprint", "layout hash"),
    Word("one of each|without repeats", "storage_view"),
    Word("arrivals", "new parameters"),
    Word("journal|amend|seats|adopt", "dirty flag, repair_layout, positions, load_state"),
    Word("undisturbed|settle", "views_intact, refresh_snapshot", CODE),
    # The ways of a step.
    Word("(?:by|of) address(?:es)?|described|step_described", "pointer path, pointer table"),
    Word("by lists", "through the dispatcher, tensor-list path"),
    Word("unwatched", "no dispatch mode or profiler active"),
    Word("BRIEF|OtherThreads", "HOLD_GIL_UP_TO, GilRelease"),
    # Scalars.
    Word("row_of|RowTable|step_row|rows operators?|host_rows|device_rows", "scalars, scalar_index, ScalarBuffer"),
    Word("hyper|Hyper", "GroupScalars, hyperparameters"),
    Word(r"MOMENTUM|ADAPTIVE|HOLD(?!_GIL)", "update rule: UNRECTIFIED, RECTIFIED, NO_PARAM_UPDATE, SKIP_STEP"),
    Word("coupled_decay|grad_factor", "l2_decay, grad_scale_factor"),
    Word("squares operators?|sum of (?:the )?squares of gradients", "grad_norm operator"),
    Word("halve", "tree_reduce"),
    # Low-precision state.
    Word("stored forms?|plain forms?|FORMS|Forms?|check_forms", "state formats, low-precision, full-precision"),
    Word("residue", "master buffer"),
    Word("kept beside", "stored in addition"),
    Word("draws", "random bits", CODE),
    Word(r"(?<!\.)origins?", "rng offset", CODE),
    Word("at rest|REST", "underflow to zero, MIN_SCALE"),
    # Kernels.
    Word("team|Solo|Part|Place", "thread group, SingleThread, phase, ThreadIndex", ("csrc",)),
    Word(r"(?<!ast\.)walks?|walked", "for_each_tile, tile loop", CODE),
    Word("kShare|Quad|Stretch", "kVec, uint4, TileRange"),
    Word(r"(?:step|draw|code) lanes|lanes\.h", "cpu/avx512/{vec,update,philox,quantization}.h"),
    Word("(?-i:isa)", "CPU capability", CODE),
    Word("twins?", "mirrored implementation, pair"),
    Word("oracle", "reference"),
    # Benchmarks.
    Word("contestants?", "candidate, implementation"),
    Word("heats?", "memory group"),
    Word("peers?", "baseline"),
    Word("tape", "replay timer", ("bench", "tests")),
    Word("patience", "quiet-machine timeout"),
    Word("Absent", "Skipped"),
    # Prose.
    Word("nobody|somebody|everybody|anybody", "the actor: another thread, user code, a profiler"),
    Word(r"lies|lay(?! (?:\w+ )?out)|lie(?! closer)", "is stored"),
    Word("(?:go|goes|going|went|gone) by", "uses"),
    Word("anew", "again, rebuild"),
    Word("in earnest", "eagerly"),
    Word(r"for good(?=[\s]*[.,;:)]|$)", "permanently"),
    Word("tells?|telling|told", "returns, reports, raises"),
    Word("asks? for memory", "prefetches"),
    Word("held against", "compared with"),
]
"""Left the word that is not used any more, right the word of the field."""

ALLOWED: dict[tuple[str, str], str] = {
    ("bench/keys.py", line): "the files under bench/results have this key"
    for line in (
        'CANDIDATES = "contestants"',
        'MEMORY_GROUPS = "heats"',
        'PACKAGES = "peers"',
        'OURS, BASELINE, ROOFLINE = "ours", "peer", "ceiling"',
        'BASELINE_OVER_OURS = "peer_over_ours"',
    )
}
"""A file and a line's text that may keep a word, with the reason."""

GAP = r"(?:[ _]|[ \t]*\n[ \t]*(?:#|//|\*)?[ \t]*)"
"""Between two words of a pattern: also the end of a line, and the comment sign of the next one."""


def compiled(word: Word) -> re.Pattern[str]:
    flags = re.MULTILINE if any(c.isupper() for c in word.pattern) else re.MULTILINE | re.IGNORECASE
    pattern = re.sub(r"(?<=[a-z)?]) (?=[a-z(?])", lambda _: GAP, word.pattern)
    return re.compile(rf"(?<![A-Za-z])(?:{pattern})(?![A-Za-z])", flags)


def found(text: str, folder: str) -> Iterator[tuple[int, str, Word]]:
    """Line, what stands there, and the word, for every private word in a text."""
    for word in WORDS:
        if folder in word.folders:
            for match in compiled(word).finditer(text):
                yield text.count("\n", 0, match.start()) + 1, match[0], word


def files(folder: str) -> Iterator[Path]:
    top = ROOT / folder
    for path in sorted(top.rglob("*") if top.is_dir() else [top]):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in SUFFIXES and not any(name == out or name.startswith(f"{out}/") for out in LEFT_OUT):
            yield path


def findings(folder: str) -> list[str]:
    lines = []
    for path in files(folder):
        text, name = path.read_text(), path.relative_to(ROOT).as_posix()
        rows = text.splitlines()
        for line, what, word in found(text, folder):
            if (name, rows[line - 1].strip()) not in ALLOWED:
                lines.append(f"{name}:{line}: {' '.join(what.split())!r}: use {word.instead}")
        for _, what, word in found(path.stem, folder):
            if (name, "") not in ALLOWED:
                lines.append(f"{name}: its name has {what!r}: use {word.instead}")
    return lines


@pytest.mark.parametrize("folder", FOLDERS)
def test_private_words_are_gone(folder: str) -> None:
    assert findings(folder) == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("# Somebody tells it.", 2),
        ("def moments_by_addresses() -> None:", 1),
        ("// steps that go\n// by lists", 2),
        ("The contestants' oracle is anew.", 3),
        ("A signal tellingly layered by analysts; Placements of DTensor, walker, heath.", 0),
        ("for good arguments", 0),
    ],
)
def test_a_planted_word_is_found(text: str, count: int) -> None:
    """The negative control, and words that are only like the private ones."""
    assert len(list(found(text, "tests"))) == count


def test_what_is_allowed_is_there() -> None:
    for (name, line), reason in ALLOWED.items():
        assert reason
        assert line == "" or line in [text.strip() for text in (ROOT / name).read_text().splitlines()]


if __name__ == "__main__":
    print(*(line for folder in sys.argv[1:] or FOLDERS for line in findings(folder)), sep="\n")
