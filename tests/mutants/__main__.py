"""Changes one thing at a time in a module, and counts the changes that its tests notice: ``make mutants``.

``python -m tests.mutants [PATTERN ...]`` tries the mutants whose names match, such as ``'radam_fused.options.*'``, or
all that have not been tried; ``--every 4`` tries a quarter, ``--again`` the survivors too, ``--results`` none: it
prints what is known. The mutants, with their results, are in the folder `mutants`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before anything imports torch: a forked process has no OpenMP threads

import mutmut.__main__
import mutmut.workers.isolation
from mutmut.mutation.diff_apply import get_diff_for_mutant

from tests.mutants.results import NOT_TRIED, all_mutants, changed_lines, fate, read_reasons, reason_of, table
from tests.mutants.warm import WarmRunner

collect = mutmut.__main__.collect_source_file_mutation_data


def report() -> int:
    """Prints the counts, and the survivors that have no reason; the number of these."""
    mutants = list(all_mutants())
    reasons = read_reasons()
    found = {}
    open_ones = []
    for mutant in (one for one in mutants if one.fate not in ("killed", NOT_TRIED)):
        lines = changed_lines(get_diff_for_mutant(mutant.name, path=mutant.path))
        found[mutant.name] = reason_of(mutant, lines, reasons)
        if found[mutant.name] is None:
            open_ones.append(mutant)
            print(f"\n{mutant.fate}: {mutant.name}")
            print(
                "\n".join(
                    f"  {sign} {line}" for sign, text in zip("-+", lines, strict=True) for line in text.splitlines()
                )
            )
    print(f"\n{table(mutants, found)}")
    return len(open_ones)


def collect_some(every: int, again: bool, *, mutant_names: Sequence[str]) -> tuple[Any, Any]:
    """The mutants that mutmut will try, without a result, and what is known of all."""
    mutants, known = collect(mutant_names=mutant_names)
    untried = [one for one in mutants if one[2] is None][::every]
    survivors = [(file, name, None) for file, name, code in mutants if fate(code) not in ("killed", NOT_TRIED)]
    return untried + (survivors if again else []), known


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.splitlines()[0])
    parser.add_argument(
        "patterns", nargs="*", metavar="PATTERN", help="names of mutants, such as 'radam_fused.options.*'"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--results", action="store_true", help="try none, print what is known")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of those that were not tried, one in N")
    parser.add_argument("--again", action="store_true", help="try those again that have survived")
    given = parser.parse_args(arguments)
    if not given.results:
        for old in Path("mutants").glob("radam_fused/*.so"):  # mutmut copies what is not there yet
            old.unlink()
        mutmut.workers.isolation.PytestRunner = WarmRunner
        mutmut.__main__.collect_source_file_mutation_data = partial(collect_some, given.every, given.again)
        mutmut.__main__._run(tuple(given.patterns), given.processes)
    assert Path("mutants").is_dir(), "no mutants have been made"
    return min(report(), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
