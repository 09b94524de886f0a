"""``python -m bench``: one optimizer step beside its baselines and the roofline, as tables, files and plots."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from bench.harness import results, step_results, training_steps
from bench.harness.cache_state import STATES
from bench.harness.plan import Plan
from bench.harness.session import Run
from bench.optimizers import baselines
from bench.report import plots, tables
from bench.workloads import cases

RESULTS = Path(__file__).with_name("results")


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the arguments that go on to pytest."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, epilog="The rest goes to pytest.")
    names = ", ".join([*cases.SETS, "training", *cases.CASES, *training_steps.MODELS])
    parser.add_argument("--cases", nargs="+", default=["default"], metavar="NAME", help=f"(default) {names}")
    names = ", ".join(baselines.BASELINES)
    parser.add_argument(
        "--baselines",
        nargs="+",
        default=["all"],
        metavar="NAME",
        help=f"(all) torch, none, {names}",
    )
    parser.add_argument("--rounds", type=int, help="a fixed number instead of as many as the budget allows")
    parser.add_argument("--budget", type=float, default=Plan.budget, help="seconds of rounds per case (%(default)s)")
    parser.add_argument(
        "--quiet-timeout",
        type=float,
        default=Plan.quiet_timeout,
        help="seconds per case to wait until other processes leave the CPUs idle (%(default)s)",
    )
    parser.add_argument("--threads", type=int, help="torch's threads (torch's choice)")
    parser.add_argument("--caches", choices=STATES, help="for all cases instead of each case's own; see cache_state.py")
    parser.add_argument(
        "--out", type=Path, help="folder (bench/results/cpu; out/bench if cases or baselines are chosen)"
    )
    options, rest = parser.parse_known_args(arguments)
    if options.out is None:  # bench/results keeps complete runs only
        complete = (options.cases, options.baselines) == (["default"], ["all"])
        options.out = RESULTS / "cpu" if complete else Path("out") / "bench"
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds: at least 1")
    try:
        options.models, names = training_steps.chosen(options.cases)
        options.cases = cases.chosen(names)
        options.baselines = baselines.chosen(options.baselines)
    except ValueError as error:
        parser.error(str(error))
    return options, rest


def main(arguments: list[str]) -> int:
    """Runs the suite, writes its files and shows its tables; returns pytest's exit status."""
    options, rest = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    plan = Plan(options.budget, samples=options.rounds, quiet_timeout=options.quiet_timeout, caches=options.caches)
    run = Run(cases=options.cases, models=options.models, baselines=options.baselines, plan=plan)
    status = run.start(rest)

    if run.measurements or run.trained:
        found = step_results.results(run)
        options.out.mkdir(parents=True, exist_ok=True)
        results.write(found, options.out / "step.json")
        pictures = plots.draw(found, options.out)
        report = tables.document(found, pictures)
        (options.out / "step.md").write_text(report.markdown())
        tables.show(report, run.console)
        files = ", ".join(["step.json", "step.md", *pictures])
        run.console.print(f"in {options.out}: {files}", style="dim", highlight=False)
    for name, reason in run.skipped.items():
        run.console.print(f"{name} was not measured: {reason}")
    for failure in run.failures:
        run.console.print(failure, style="red", markup=False, highlight=False)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
