"""Whole training steps, part by part: ``python -m bench.studies.whole_step``, in a quarter of an hour on two cores.

Every candidate trains its own copy of a model on the same batch. A round takes one training step of each, in a new
random order, and a ratio is that of two steps of one round. The system may give one copy better memory than another for
as long as a process runs, so several processes share the rounds.

"FusedRAdam, gradients kept" calls ``zero_grad(set_to_none=False)``. It separates what keeping gradients costs from what
flat buffers cost: where a gradient exists, autograd adds to it, and where there is none it hands the new one over.

Results go to bench/results/cpu/whole-step.json; `make readme` makes the table of docs/benchmarks.md from them.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.harness import machine, results
from bench.harness.measure import no_collection, quartiles, rounded
from bench.harness.training_steps import MODELS, batch_of
from bench.optimizers.baselines import BASELINES, HYPERPARAMETERS
from bench.optimizers.candidates import FIRST_STEPS
from examples.gpt import GPT
from radam_fused import FusedRAdam

RESULTS = Path(__file__).parents[1] / "results" / "cpu" / "whole-step.json"
PARTS = ("zero_grad", "forward", "backward", "step")
PROCESSES = 4
ROUNDS = {"train-gpt2": 12, "train-small": 150, "train-many": 40}
"""For each process."""
AGAINST = "fused"


class Candidate(NamedTuple):
    label: str
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    clear: Callable[[torch.optim.Optimizer], None] = lambda optimizer: optimizer.zero_grad()


_fused = partial(FusedRAdam, backend="cpu", **HYPERPARAMETERS)
CANDIDATES = {
    AGAINST: Candidate("FusedRAdam", _fused),
    "fused-kept": Candidate(
        "FusedRAdam, gradients kept", _fused, lambda optimizer: optimizer.zero_grad(set_to_none=False)
    ),
    "fused-flat": Candidate("FusedRAdam, flatten", partial(_fused, flatten=True)),
    "fused-flat-zeroed": Candidate(
        "FusedRAdam, flatten, zero_grads", partial(_fused, flatten=True, zero_grads=True), lambda optimizer: None
    ),
    "adamw-fused": Candidate("torch AdamW, fused", BASELINES["adamw-fused"].make),
    "radam-foreach": Candidate("torch RAdam, foreach", BASELINES["radam-foreach"].make),
}


class Chain(nn.Module):
    """Many small layers, one after the other: as many tensors as a model can have for its size."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        for layer in self.layers:
            inputs = inputs + layer(inputs).tanh() / len(self.layers)
        return nn.functional.mse_loss(inputs, targets)


def model(name: str) -> tuple[str, Callable[[], Any], tuple[Tensor, Tensor]]:
    """What tables call a model, the function that makes it, and its batch."""
    if name == "train-many":
        generator = torch.Generator().manual_seed(1)
        inputs, targets = (torch.randn(8, 16, generator=generator) for _ in range(2))
        return "2,000 linear layers of 16 × 16, 4,000 tensors", partial(Chain, 2000, 16), (inputs, targets)
    found = MODELS[name]
    return found.title, partial(GPT, found.config), batch_of(found)


def run(name: str, rounds: int, seed: int) -> dict[str, list[list[float]]]:
    """Seconds by candidate: for each round those of the `PARTS`."""
    _, make, batch = model(name)

    def step(network: Any, optimizer: torch.optim.Optimizer, clear: Callable[[Any], None]) -> list[float]:
        times = [time.perf_counter()]
        clear(optimizer)
        times.append(time.perf_counter())
        loss = network.loss(*batch)
        times.append(time.perf_counter())
        loss.backward()
        times.append(time.perf_counter())
        optimizer.step()
        times.append(time.perf_counter())
        return [after - before for before, after in pairwise(times)]

    shuffle = random.Random(seed).shuffle
    order = list(CANDIDATES)
    shuffle(order)
    trained = {}
    for key in order:
        torch.manual_seed(0)
        network = make()
        trained[key] = (network, CANDIDATES[key].make(list(network.parameters())), CANDIDATES[key].clear)
        for _ in range(FIRST_STEPS):
            step(*trained[key])
    times: dict[str, list[list[float]]] = {key: [] for key in CANDIDATES}
    with no_collection():
        for _ in range(rounds):
            shuffle(order)
            for key in order:
                times[key].append(step(*trained[key]))
    return times


def interval(samples: Sequence[float]) -> list[float]:
    """Where the median of the population is, with 95 % confidence, by order statistics: no distribution is assumed."""
    ordered, count = sorted(samples), len(samples)
    reach = 0.98 * math.sqrt(count)
    low, high = max(0, math.floor(count / 2 - reach)), min(count - 1, math.ceil(count / 2 + reach))
    return [rounded(ordered[low]), rounded(ordered[high])]


def summary(times: dict[str, list[list[float]]]) -> dict[str, Any]:
    """Statistics by candidate, in milliseconds."""
    found = {}
    whole = {key: [sum(parts) for parts in rows] for key, rows in times.items()}
    for key, rows in times.items():
        ratios = [own / other for own, other in zip(whole[key], whole[AGAINST], strict=True)]
        shares = [(row[0] + row[3]) / sum(row) for row in rows]
        found[key] = {
            "label": CANDIDATES[key].label,
            "ms": quartiles(whole[key], 1e3),
            "ratio": {**quartiles(ratios), "interval": interval(ratios)},
            "optimizer_share": quartiles(shares),
            "parts_ms": {
                part: rounded(1e3 * statistics.median(row[place] for row in rows)) for place, part in enumerate(PARTS)
            },
        }
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.studies.whole_step", description=__doc__)
    parser.add_argument(
        "--models", help="the file keeps the others", nargs="+", default=list(ROUNDS), choices=[*ROUNDS, "train-tiny"]
    )
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--rounds", type=int, help="for each process")
    parser.add_argument("--seed", type=int, help="one process: prints its seconds as JSON")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.seed is not None:
        (name,) = options.models
        print(json.dumps(run(name, options.rounds, options.seed)))
        return 0
    found = results.about("whole training steps", 1)
    earlier = json.loads(options.out.read_text())["models"] if options.out.exists() else {}
    found |= {"machine": machine.machine(), "threads": torch.get_num_threads(), "models": earlier}
    for name in options.models:
        rounds = options.rounds or ROUNDS.get(name, 3)
        times: dict[str, list[list[float]]] = {key: [] for key in CANDIDATES}
        for seed in range(options.processes):
            command = [sys.executable, "-m", "bench.studies.whole_step", "--models", name]
            command += ["--rounds", str(rounds), "--seed", str(seed)]
            for key, rows in json.loads(subprocess.check_output(command)).items():
                times[key] += rows
        title, make, _ = model(name)
        parameters = list(make().parameters())
        found["models"][name] = {
            "title": title,
            "date": found["date"],
            "tensors": len(parameters),
            "elements": sum(p.numel() for p in parameters),
            "rounds": rounds * options.processes,
            "processes": options.processes,
            "candidates": summary(times),
        }
        for row in found["models"][name]["candidates"].values():
            low, high = row["ratio"]["interval"]
            print(f"{name}: {row['label']}: {row['ms']['median']} ms, {row['ratio']['median']} ({low} to {high})")
        results.write(found, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
