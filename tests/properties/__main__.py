"""The long form: ``python -m tests.properties --examples 10000 --seed 1``, or ``make properties``.

Each seed is another set of examples, the same for the same seed. The counts of what was tried go to ``--results``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence

import torch

if not torch.cuda.is_available():  # before anything imports Triton: its kernels are then interpreted on the CPU
    os.environ["TRITON_INTERPRET"] = "1"

from hypothesis import HealthCheck, Phase, core, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.properties.faults import Faults
from tests.properties.mirror import done


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.properties", description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=20, help="rules in one example, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-shrink", action="store_true", help="report a failure as it was found")
    parser.add_argument("--results", help="a JSON file for the counts")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    sys.unraisablehook = lambda _: None  # Python itself drops what a handler raises inside of a finalizer
    core.global_force_seed = given.seed
    started = time.monotonic()
    run_state_machine_as_test(
        Faults,
        settings=settings(
            max_examples=given.examples,
            stateful_step_count=given.steps,
            phases=[Phase.generate] if given.no_shrink else [Phase.generate, Phase.shrink],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        ),
    )
    result = {"seed": given.seed, "seconds": round(time.monotonic() - started), **dict(sorted(done.items()))}
    print(json.dumps(result, indent=1))
    if given.results:
        with open(given.results, "w") as file:
            json.dump(result, file, indent=1)
            file.write("\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
