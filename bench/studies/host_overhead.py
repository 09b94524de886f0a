"""What a step costs the host, by the number of tensors: ``python -m bench.studies.host_overhead``, under a minute.

CPU tensors of one element, so that nearly nothing is left but the host's part, and a fresh gradient for each before
every step, as a backward pass leaves them. Contestants take turns; the result is held against what is promised. The
fewest tensors are stepped once more with cold caches, as a training loop leaves them: `bench.harness.cache_state`.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.harness.cache_state import before_step
from bench.harness.machine import commit, machine, versions
from radam_fused import FusedRAdam

TENSORS = (10, 1000, 10_000)
ROUNDS, FIRST = 30, 7
"""Steps that are timed, and those before: RAdam rectifies from the sixth on."""
CONTESTANTS: dict[str, Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]] = {
    "FusedRAdam": lambda params: FusedRAdam(params, backend="cpu"),
    "FusedRAdam, max_grad_norm": lambda params: FusedRAdam(params, backend="cpu", max_grad_norm=1.0),
    "FusedRAdam, flatten": lambda params: FusedRAdam(params, backend="cpu", flatten=True),
    "torch AdamW, fused": lambda params: torch.optim.AdamW(params, fused=True),
    "torch RAdam, foreach": lambda params: torch.optim.RAdam(params, foreach=True),
}
OURS, FLAT, PEER = "FusedRAdam", "FusedRAdam, flatten", "torch AdamW, fused"
TIMES_FASTER = 15
"""Than the peer, with as many tensors as here at most."""


class Runner:
    """One contestant over tensors of its own."""

    def __init__(self, name: str, tensors: int) -> None:
        self.params = [torch.nn.Parameter(torch.full((1,), float(k))) for k in range(tensors)]
        self.optimizer = CONTESTANTS[name](self.params)
        self.flat = name == FLAT  # its gradients stay, and are written in place
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


def measure(tensors: int, rounds: int, caches: str = "warm") -> dict[str, Any]:
    """Microseconds a step of each contestant, median and quartiles, and the peer's over ours round by round.

    Args:
        caches: "warm", or what `bench.harness.cache_state` empties before every step.
    """
    before = (lambda _: None) if caches == "warm" else before_step(caches)
    runners = {name: Runner(name, tensors) for name in CONTESTANTS}
    gc.collect()
    gc.disable()
    try:
        for _ in range(FIRST + rounds):
            for runner in runners.values():
                runner.prepare()
            for runner in runners.values():
                runner.step(before)
    finally:
        gc.enable()
    taken = {name: [1e6 * s for s in runner.seconds[FIRST:]] for name, runner in runners.items()}
    ratios = [peer / ours for peer, ours in zip(taken[PEER], taken[OURS], strict=True)]
    return {
        "tensors": tensors,
        "caches": caches,
        "us": {name: statistics.median(us) for name, us in taken.items()},
        "quartiles": {name: statistics.quantiles(us, n=4)[::2] for name, us in taken.items()},
        "peer_over_ours": statistics.median(ratios),
    }


def claims(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is promised, and whether it was kept."""
    cold, *warm = rows
    least, most = warm[0], warm[-1]
    faster, cold_faster = most["peer_over_ours"], cold["peer_over_ours"]
    more = (most["us"][FLAT] - least["us"][FLAT]) / (most["tensors"] - least["tensors"])
    return [
        f"{'PASS' if faster >= TIMES_FASTER else 'MISS'} {most['tensors']:,} tensors: {PEER} takes {TIMES_FASTER} "
        f"times as long: {faster:.1f}",
        f"{'PASS' if cold_faster > 1 else 'MISS'} {cold['tensors']} tensors, cold caches: {PEER} takes longer: "
        f"{cold_faster:.2f} times as long",
        f"{'PASS' if more <= 0.1 else 'MISS'} {FLAT}: nothing a tensor but its 64 elements with their padding, "
        f"0.1 µs at most: {more:.3f} µs",
    ]


def text(rows: Sequence[dict[str, Any]]) -> str:
    """A line a contestant, a column a number of tensors."""
    heading = f"{'µs a step':<28}" + "".join(f"{row['tensors']:>10,}" for row in rows)
    heading += f"\n{'caches':<28}" + "".join(f"{row['caches']:>10}" for row in rows)
    lines = [f"{name:<28}" + "".join(f"{row['us'][name]:>10.1f}" for row in rows) for name in CONTESTANTS]
    return "\n".join([heading, *lines, *claims(rows)])


def main(arguments: Sequence[str]) -> int:
    """Measures, prints a table and saves the rows; the status is 1 where a promise was not kept."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--tensors", type=int, nargs="+", default=TENSORS)
    parser.add_argument("--results", type=Path, default=Path("bench/results/cpu/host.json"))
    options = parser.parse_args(arguments)
    rows = [measure(options.tensors[0], options.rounds, "cold")]
    rows += [measure(tensors, options.rounds) for tensors in options.tensors]
    about = {"machine": machine(), "threads": torch.get_num_threads(), "versions": versions(), "commit": commit()}
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps({**about, "rows": rows, "claims": claims(rows)}, indent=1) + "\n")
    print(text(rows))
    return int(any(claim.startswith("MISS") for claim in claims(rows)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
