"""``python -m bench``: one optimizer step beside its peers and the ceiling, as a table, JSON, Markdown and PNG."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from bench import plot, report
from bench.caches import STATES
from bench.cases import CASES
from bench.measure import Plan
from bench.peers import CONTESTANTS
from bench.run import Run

RESULTS = Path(__file__).with_name("results")


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    shown = [name for name, case in CASES.items() if case.shown]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, epilog="The rest goes to pytest.")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=shown, metavar="NAME", help=", ".join(CASES))
    parser.add_argument(
        "--contestants",
        nargs="+",
        choices=list(CONTESTANTS),
        default=list(CONTESTANTS),
        metavar="NAME",
        help=", ".join(CONTESTANTS),
    )
    parser.add_argument("--rounds", type=int, help="a fixed number, in place of as many as the budget allows")
    parser.add_argument("--budget", type=float, default=Plan.budget, help="seconds of rounds a case (%(default)s)")
    parser.add_argument(
        "--patience", type=float, default=Plan.patience, help="seconds a case to wait for a quiet machine (%(default)s)"
    )
    parser.add_argument("--threads", type=int, help="torch's threads (torch's choice)")
    parser.add_argument("--caches", choices=STATES, help="for all cases, instead of each one's own: see caches.py")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu", help="folder of the results (bench/results/cpu)")
    options, rest = parser.parse_known_args(arguments)
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds: at least 1")
    return options, rest


def main(arguments: list[str]) -> int:
    options, rest = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    run = Run(
        cases=options.cases,
        contestants=options.contestants,
        plan=Plan(options.rounds, budget=options.budget, patience=options.patience, caches=options.caches),
    )
    status = run.start(rest)

    if run.measurements:
        found = report.results(run)
        options.out.mkdir(parents=True, exist_ok=True)
        report.write_json(found, options.out / "step.json")
        plot.draw(found, options.out / "step.png")
        (options.out / "step.md").write_text(report.markdown(found, plot="step.png"))
        report.show(found, run.console)
        run.console.print(f"in {options.out}: step.json, step.md, step.png", style="dim", highlight=False)
    for name, reason in run.skipped.items():
        run.console.print(f"{name} was not measured: {reason}")
    for failure in run.failures:
        run.console.print(failure, style="red", markup=False, highlight=False)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
