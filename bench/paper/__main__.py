"""``python -m bench.paper``: the paper's claims, with this package's optimizer, as JSON, PNG and a report.

Every finished unit of work is a file, so a run that was interrupted does only the rest. CIFAR10=folder in the
environment adds CIFAR10, from its unpacked archive; on a CPU that takes hours.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from bench.paper import report
from bench.paper.run import PARTS, Run, results_folder
from bench.paper.sizes import SIZES
from bench.paper.units import Store


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.paper", description=__doc__)
    parser.add_argument("--sizes", choices=SIZES, help="full on a CPU, large on a GPU; quick is three minutes")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, help="processes of one thread each (the cores; one on a GPU)")
    parser.add_argument("--results", type=Path, help="of JSON and PNG (bench/results/paper, or build/paper-SIZES)")
    parser.add_argument("--report", type=Path, help="(docs/paper.md for the full form, else paper.md in the results)")
    parser.add_argument("--only-report", action="store_true", help="compute nothing: figures and report again")
    options = parser.parse_args(arguments)
    on_cpu = options.device == "cpu"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    options.sizes = SIZES[options.sizes or ("full" if on_cpu else "large")]
    options.workers = options.workers or (cores if on_cpu else 1)
    own = results_folder(options.sizes)
    if options.report is None and options.results is None and options.sizes.name == "full":
        options.report = Path(__file__).parents[2] / "docs" / "paper.md"
    options.results = options.results or own
    options.report = options.report or options.results / "paper.md"
    return options


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    store = Store(options.results)
    if not options.only_report:
        run = Run(options.sizes, options.device, store, options.workers, options.parts)
        try:
            run.start()
        except KeyboardInterrupt:
            run.console.print(f"interrupted; {len(run.computed)} more units are kept, and the same command goes on")
            return 130
    report.write(store, options.report)
    print(f"{options.report}, and the figures beside the results in {options.results}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
