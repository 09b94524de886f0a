"""``python -m bench``: one optimizer step beside its peers and the floor, as tables, JSON, Markdown and pictures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from bench.harness import results, training_steps
from bench.harness.cache_state import STATES
from bench.harness.interleave import Plan
from bench.harness.session import Run
from bench.optimizers import baselines
from bench.report import plots, tables
from bench.workloads import cases

RESULTS = Path(__file__).with_name("results")


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, epilog="The rest goes to pytest.")
    parser.add_argument(
        "--cases",
        nargs="+",
        default=["default"],
        metavar="NAME",
        help=f"default, {', '.join([*cases.SETS, 'training', *cases.CASES, *training_steps.MODELS])}",
    )
    parser.add_argument(
        "--peers", nargs="+", default=["all"], metavar="NAME", help=f"all, torch, none, {', '.join(baselines.PEERS)}"
    )
    parser.add_argument("--rounds", type=int, help="a fixed number, in place of as many as the budget allows")
    parser.add_argument("--budget", type=float, default=Plan.budget, help="seconds of rounds a case (%(default)s)")
    parser.add_argument(
        "--patience", type=float, default=Plan.patience, help="seconds a case to wait for a quiet machine (%(default)s)"
    )
    parser.add_argument("--threads", type=int, help="torch's threads (torch's choice)")
    parser.add_argument("--caches", choices=STATES, help="for all cases, instead of each one's own: see caches.py")
    parser.add_argument("--out", type=Path, help="folder (bench/results/cpu; out/bench for chosen cases or peers)")
    options, rest = parser.parse_known_args(arguments)
    if options.out is None:  # what is kept is whole
        whole = (options.cases, options.peers) == (["default"], ["all"])
        options.out = RESULTS / "cpu" if whole else Path("out") / "bench"
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds: at least 1")
    try:
        options.models, names = training_steps.chosen(options.cases)
        options.cases = cases.chosen(names)
        options.peers = baselines.chosen(options.peers)
    except ValueError as error:
        parser.error(str(error))
    return options, rest


def main(arguments: list[str]) -> int:
    options, rest = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    plan = Plan(options.rounds, budget=options.budget, patience=options.patience, caches=options.caches)
    run = Run(cases=options.cases, models=options.models, peers=options.peers, plan=plan)
    status = run.start(rest)

    if run.measurements or run.trained:
        found = results.results(run)
        options.out.mkdir(parents=True, exist_ok=True)
        results.write(found, options.out / "step.json")
        pictures = plots.draw(found, options.out)
        (options.out / "step.md").write_text(tables.markdown(found, pictures))
        tables.show(found, run.console)
        files = ", ".join(["step.json", "step.md", *pictures])
        run.console.print(f"in {options.out}: {files}", style="dim", highlight=False)
    for name, reason in run.skipped.items():
        run.console.print(f"{name} was not measured: {reason}")
    for failure in run.failures:
        run.console.print(failure, style="red", markup=False, highlight=False)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
