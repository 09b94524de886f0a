"""Host time of a step by the number of tensors: ``python -m bench.studies.host_overhead``, under a minute.

The tensors are on the CPU and have one element, so that nearly all time is the host's. Each gets a new gradient before
every step, as from a backward pass. Candidates take turns, and the result is compared with performance targets. The
smallest number of tensors is also measured with cold caches, as a training loop leaves them
(`bench.harness.cache_state`). ``--triton`` measures the triton backend beside the cpu backend, with a stand-in for the
driver that launches nothing, into host_triton.json: in turns, and each alone, whose tensors no other candidate's have
driven from the caches.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from bench import keys
from bench.harness.cache_state import before_step
from bench.harness.machine import commit, machine, versions
from bench.harness.measure import no_collection
from bench.report.targets import at_least, at_most, verdict
from radam_fused import FusedRAdam

TENSORS = (10, 1000, 10_000)
ROUNDS, FIRST = 30, 7
"""Timed steps, and untimed ones before them: RAdam is rectified from step 6 on."""
CANDIDATES: dict[str, Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]] = {
    "FusedRAdam": lambda params: FusedRAdam(params, backend="cpu"),
    "FusedRAdam, max_grad_norm": lambda params: FusedRAdam(params, backend="cpu", max_grad_norm=1.0),
    "FusedRAdam, flatten": lambda params: FusedRAdam(params, backend="cpu", flatten=True),
    "torch AdamW, fused": lambda params: torch.optim.AdamW(params, fused=True),
    "torch RAdam, foreach": lambda params: torch.optim.RAdam(params, foreach=True),
}
TRITON: dict[str, Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]] = {
    "triton": lambda params: FusedRAdam(params, backend="triton"),
    "triton, max_grad_norm": lambda params: FusedRAdam(params, backend="triton", max_grad_norm=1.0),
    "triton, flatten": lambda params: FusedRAdam(params, backend="triton", flatten=True),
    "triton, flatten, max_grad_norm": lambda params: FusedRAdam(
        params, backend="triton", flatten=True, max_grad_norm=1.0
    ),
}
"""The same on tensors of the CPU, with all that a GPU's host does but the launch itself."""
TRITON_BESIDE = ("FusedRAdam", "FusedRAdam, max_grad_norm", "FusedRAdam, flatten", "torch AdamW, fused")
TRITON_FIXED, TRITON_TENSOR = 40.0, 0.3
"""The target: microseconds a step, and for each tensor without ``flatten``."""
OURS, FLAT, BASELINE = "FusedRAdam", "FusedRAdam, flatten", "torch AdamW, fused"
TIMES_FASTER = 15
"""The target ratio to the baseline, for the largest number of tensors."""


class Runner:
    """One candidate with its own tensors."""

    def __init__(self, name: str, tensors: int) -> None:
        self.params = [torch.nn.Parameter(torch.full((1,), float(k))) for k in range(tensors)]
        self.optimizer = (CANDIDATES | TRITON)[name](self.params)
        self.flat = "flatten" in name  # its gradients stay and are written in place
        self.seconds: list[float] = []

    def prepare(self) -> None:
        for p in self.params:
            if self.flat:
                p.grad.add_(1.0)
            else:
                p.grad = torch.ones(1)

    def step(self, before: Callable[[Callable[[], object]], None]) -> None:
        before(self.optimizer.step)
        begin = time.perf_counter()
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - begin)


def no_launches() -> AbstractContextManager[Any]:
    """A stand-in for Triton's driver, in a checkout of the repository: kernels are neither compiled nor run."""
    from tests.support.fake_launch import replacing_driver

    return replacing_driver(runs=False)


def _run(runners: dict[str, Runner], rounds: int, before: Callable[..., None]) -> dict[str, Runner]:
    """The steps of candidates that take turns."""
    with no_collection():
        for _ in range(FIRST + rounds):
            for runner in runners.values():
                runner.prepare()
            for runner in runners.values():
                runner.step(before)
    return runners


def measure(
    tensors: int, rounds: int, caches: str = "warm", candidates: Sequence[str] = tuple(CANDIDATES)
) -> dict[str, Any]:
    """Microseconds per step of each candidate, and the median ratio of the baseline to ours within a round.

    Args:
        caches: "warm", one of `bench.harness.cache_state.STATES`, or "alone": warm, and no other candidate in between.
        candidates: of `CANDIDATES` and `TRITON`.
    """
    before = (lambda _: None) if caches in ("warm", "alone") else before_step(caches)
    runners: dict[str, Runner] = {}
    for together in [[name] for name in candidates] if caches == "alone" else [candidates]:
        runners |= _run({name: Runner(name, tensors) for name in together}, rounds, before)
    taken = {name: [1e6 * s for s in runner.seconds[FIRST:]] for name, runner in runners.items()}
    ratios = [baseline / ours for baseline, ours in zip(taken[BASELINE], taken[OURS], strict=True)]
    return {
        "tensors": tensors,
        "caches": caches,
        "us": {name: statistics.median(us) for name, us in taken.items()},
        "least": {name: min(us) for name, us in taken.items()},
        "quartiles": {name: statistics.quantiles(us, n=4)[::2] for name, us in taken.items()},
        keys.BASELINE_OVER_OURS: statistics.median(ratios),
    }


def targets(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The performance targets with their verdicts."""
    cold, *warm = rows
    least, most = warm[0], warm[-1]
    faster, cold_faster = most[keys.BASELINE_OVER_OURS], cold[keys.BASELINE_OVER_OURS]
    more = (most["us"][FLAT] - least["us"][FLAT]) / (most["tensors"] - least["tensors"])
    return [
        verdict(
            f"{most['tensors']:,} tensors: {BASELINE} takes {TIMES_FASTER} times as long",
            {"": faster},
            at_least(TIMES_FASTER),
        ),
        verdict(
            f"{cold['tensors']} tensors, cold caches: {BASELINE} takes longer",
            {"": cold_faster},
            lambda ratio: ratio > 1,
            " times as long",
        ),
        verdict(
            f"{FLAT}: at most 0.1 µs per further tensor, for its 64 padded elements",
            {"": more},
            at_most(0.1),
            " µs",
        ),
    ]


def triton_targets(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The same for the triton backend's host part; with ``flatten`` for the smallest number: it looks at all views.

    Each alone, and of all rounds the shortest: what a step executes, and not what else the machine does.
    """
    warm = [row for row in rows if row["caches"] == "alone"]

    def line(name: str, row: dict[str, Any], most: float) -> str:
        return verdict(
            f"{name}, {row['tensors']:,} tensors: at most {most:.0f} µs", {"": row["least"][name]}, at_most(most), " µs"
        )

    of_tensors = [
        line(name, row, TRITON_FIXED + TRITON_TENSOR * row["tensors"])
        for row in warm
        for name in ("triton", "triton, max_grad_norm")
    ]
    return of_tensors + [line(name, warm[0], TRITON_FIXED) for name in TRITON if "flatten" in name]


def text(rows: Sequence[dict[str, Any]], found: Sequence[str]) -> str:
    """One line per candidate, one column per number of tensors."""
    heading = f"{'µs per step':<28}" + "".join(f"{row['tensors']:>10,}" for row in rows)
    heading += f"\n{'caches':<28}" + "".join(f"{row['caches']:>10}" for row in rows)
    lines = [f"{name:<28}" + "".join(f"{row['us'][name]:>10.1f}" for row in rows) for name in rows[0]["us"]]
    return "\n".join([heading, *lines, *found])


def main(arguments: Sequence[str]) -> int:
    """Measures, prints a table and saves the rows; the status is 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--tensors", type=int, nargs="+", default=TENSORS)
    parser.add_argument("--triton", action="store_true", help="the triton backend beside the cpu backend")
    parser.add_argument("--results", type=Path, help="bench/results/cpu/host.json, or host_triton.json")
    options = parser.parse_args(arguments)
    candidates = (*TRITON_BESIDE, *TRITON) if options.triton else tuple(CANDIDATES)
    with no_launches() if options.triton else nullcontext():
        rows = [measure(options.tensors[0], options.rounds, "cold", candidates)]
        for caches in ("warm", "alone") if options.triton else ("warm",):
            rows += [measure(tensors, options.rounds, caches, candidates) for tensors in options.tensors]
    found = triton_targets(rows) if options.triton else targets(rows)
    about = {"machine": machine(), "threads": torch.get_num_threads(), "versions": versions(), "commit": commit()}
    path = options.results or Path("bench/results/cpu", "host_triton.json" if options.triton else "host.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, "rows": rows, "claims": found}, indent=1) + "\n")
    print(text(rows, found))
    return int(any(target.startswith("MISS") for target in found))


if __name__ == "__main__":
    if "--triton" in sys.argv:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: tensors of the CPU need it
    sys.exit(main(sys.argv[1:]))
