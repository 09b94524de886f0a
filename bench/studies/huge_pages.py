"""``python -m bench.studies.huge_pages``: what huge pages bring FusedRAdam's own buffers (`radam_fused.state.memory`).

Half of the optimizers get their buffers without huge pages. All take turns, and ratios are taken within a round
(`bench.harness.interleave`). Linux only, with transparent huge pages set to "madvise": under "always" all buffers have
huge pages, under "never" none.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bench.harness.cache_state import before_step
from bench.harness.measure import quartiles
from bench.optimizers.baselines import HYPERPARAMETERS
from bench.optimizers.candidates import FIRST_STEPS
from radam_fused import FusedRAdam
from radam_fused.state import memory

LAYOUTS = {"tensors": False, "flatten": True}


@contextmanager
def no_huge_pages() -> Iterator[None]:
    """Inside the block, torch's allocator makes new buffers."""
    advice, memory.HUGE_PAGE = memory.HUGE_PAGE, None
    try:
        yield
    finally:
        memory.HUGE_PAGE = advice


def huge_mib() -> float:
    """This process's MiB in huge pages."""
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("AnonHugePages:"))


def optimizer(elements: int, tensors: int, flatten: bool) -> tuple[Callable[[], object], float]:
    """An optimizer's step, and the seconds of its first one, which allocates and touches the buffers."""
    params = [torch.nn.Parameter(torch.full((elements // tensors,), 0.02)) for _ in range(tensors)]
    for param in params:
        param.grad = torch.full_like(param, 0.01)
    began = time.perf_counter()
    made = FusedRAdam(params, backend="cpu", flatten=flatten, **HYPERPARAMETERS)
    made.step()
    first = time.perf_counter() - began
    for _ in range(FIRST_STEPS - 1):
        made.step()
    return made.step, first


def compare(elements: int, tensors: int, rounds: int) -> tuple[float, dict[str, dict[str, Any]]]:
    """MiB in huge pages, and by layout: times without and with them, ratios within a round, first steps."""
    before = huge_mib()
    steps: dict[tuple[str, bool], Callable[[], object]] = {}
    first: dict[tuple[str, bool], float] = {}
    for layout, flatten in LAYOUTS.items():
        with no_huge_pages():
            steps[layout, False], first[layout, False] = optimizer(elements, tensors, flatten)
        steps[layout, True], first[layout, True] = optimizer(elements, tensors, flatten)
    seconds: dict[tuple[str, bool], list[float]] = {key: [] for key in steps}
    prepare, order = before_step("cold"), list(steps)
    for _ in range(rounds):
        random.shuffle(order)
        for key in order:
            prepare(steps[key])
            began = time.perf_counter()
            steps[key]()
            seconds[key].append(time.perf_counter() - began)
    return huge_mib() - before, {
        layout: {
            "ms": [quartiles([1e3 * value for value in seconds[layout, huge]]) for huge in (False, True)],
            "ratio": quartiles([b / a for a, b in zip(seconds[layout, False], seconds[layout, True], strict=True)]),
            "first_ms": [1e3 * first[layout, huge] for huge in (False, True)],
        }
        for layout in LAYOUTS
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.studies.huge_pages", description=__doc__)
    parser.add_argument("--elements", type=int, default=2**24)
    parser.add_argument("--tensors", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args(arguments)
    mib, found = compare(options.elements, options.tensors, options.rounds)
    print(f"{options.tensors} x {options.elements // options.tensors} elements, {mib:.0f} MiB in huge pages")
    for layout, row in found.items():
        (plain, huge), ratio = row["ms"], row["ratio"]
        print(
            f"{layout}: {plain['median']} ms, huge pages {huge['median']} ms, {ratio['median']} times as long "
            f"({ratio['q1']} to {ratio['q3']}); first step {row['first_ms'][0]:.0f} and {row['first_ms'][1]:.0f} ms"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
