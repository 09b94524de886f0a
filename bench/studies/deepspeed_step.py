"""A step under DeepSpeed's ZeRO 1 to 3: ``.venv-tools/bin/python -m bench.studies.deepspeed_step``, two minutes.

Two gloo ranks of one thread each train a bfloat16 model, once with FusedRAdam and once with torch.optim's
AdamW(fused=True) as the client optimizer. The two engines take turns step by step, in a new random order each time.
Timed is the call that DeepSpeed makes of the client optimizer, over this rank's float32 masters; of a step with several
calls (ZeRO 3 makes one for each sub-group) their sum. The slower rank counts. Results go to
bench/results/cpu/deepspeed.json, and the table of docs/trainers.md is made of them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from bench.harness.machine import commit, machine, versions
from radam_fused import FusedRAdam

RESULTS = Path("bench/results/cpu/deepspeed.json")
MAKE: dict[str, Any] = {
    "FusedRAdam": lambda params: FusedRAdam(params, lr=1e-3),
    "torch.optim.AdamW(fused=True)": lambda params: torch.optim.AdamW(params, lr=1e-3, fused=True),
}
FIRST = 7
"""Steps before any is timed: RAdam is rectified from step 6 on."""


class Timed:
    """An engine, and the seconds that its client optimizer's step takes."""

    def __init__(self, deepspeed: Any, stage: int, name: str, layers: int, width: int) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
        configuration = {
            "train_micro_batch_size_per_gpu": 4,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": stage},
            "bf16": {"enabled": True},
            "steps_per_print": 10**9,
        }
        self.optimizer = MAKE[name](model.parameters())
        self.engine = deepspeed.initialize(model=model, optimizer=self.optimizer, config=configuration)[0]
        self.seconds, self._step = 0.0, self.optimizer.step
        self.optimizer.step = self._timed

    def _timed(self, *args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        result = self._step(*args, **kwargs)
        self.seconds += time.perf_counter() - begin
        return result

    def train(self, x: torch.Tensor) -> float:
        """Milliseconds of the slower rank."""
        self.engine.backward((self.engine(x) - x).float().square().mean())
        self.seconds = 0.0
        dist.barrier()
        self.engine.step()
        slower = torch.tensor([self.seconds * 1e3], dtype=torch.float64)
        dist.all_reduce(slower, dist.ReduceOp.MAX)
        return float(slower)


def _rank(rank: int, options: argparse.Namespace, rendezvous: str) -> None:
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE="2", DS_ACCELERATOR="cpu")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    deepspeed = importlib.import_module("deepspeed")
    communication: Any = importlib.import_module("deepspeed.comm.torch")
    communication.build_shm_op = lambda: None  # its own all-reduce on the CPU takes a minute to compile
    logging.disable(logging.WARNING)
    shuffle, rows = random.Random(0), []
    for stage in (1, 2, 3):
        engines = {name: Timed(deepspeed, stage, name, options.layers, options.width) for name in MAKE}
        found: dict[str, list[float]] = {name: [] for name in MAKE}
        for step in range(FIRST + options.steps):
            x = torch.randn(4, options.width, generator=torch.Generator().manual_seed(2 * step + rank)).bfloat16()
            for name in shuffle.sample(list(engines), len(engines)):
                taken = engines[name].train(x)
                if step >= FIRST:
                    found[name].append(round(taken, 4))
        rows.append({"stage": stage, "ms": found})
    if rank == 0:
        about = {"machine": machine(), "versions": versions(), "commit": commit(), "deepspeed": deepspeed.__version__}
        sizes = {"layers": options.layers, "width": options.width, "steps": options.steps}
        options.results.write_text(json.dumps({**about, **sizes, "rows": rows}, indent=1) + "\n")
    dist.barrier()
    dist.destroy_process_group()


def lines(found: dict[str, Any]) -> list[str]:
    """The table of a result file: lower quartiles and medians. Other programs of the machine lengthen the latter."""
    ours, theirs = MAKE
    result = [f"| ZeRO | {ours}, ms | {theirs}, ms | ratios |", "| ---: | ---: | ---: | ---: |"]
    for row in found["rows"]:
        a, b = (statistics.quantiles(row["ms"][name], n=4)[:2] for name in (ours, theirs))
        cells = [f"{low:.2f}, {middle:.2f}" for low, middle in (a, b)]
        ratios = ", ".join(f"{x / y:.2f}" for x, y in zip(a, b, strict=True))
        result.append(f"| {row['stage']} | {cells[0]} | {cells[1]} | {ratios} |")
    return result


def main() -> None:
    """Measures, writes the file and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.studies.deepspeed_step")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    rendezvous = options.results.with_suffix(".rendezvous").absolute()
    rendezvous.unlink(missing_ok=True)
    try:
        mp.spawn(_rank, (options, f"file://{rendezvous}"), nprocs=2)
    finally:
        rendezvous.unlink(missing_ok=True)
    print("\n".join(lines(json.loads(options.results.read_text()))))


if __name__ == "__main__":
    main()
