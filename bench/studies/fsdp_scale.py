"""``python -m bench.studies.fsdp_scale``: a step of Llama-3-70B on 512 ranks as one of them sees it.

docs/scale.md separates two parts:

- *By simulation*: FSDP2 shards the model's real shapes over a process group whose collectives do nothing, on fake
  tensors, which have sizes and no memory. The optimizer then takes its steps on this rank's shards, and its
  allocations, launches and collectives are counted.
- *Measured*: the host time of a step over as many DTensors, whose shards have four elements each, so that nearly all
  time is the host's. Candidates take turns, in a new random order in each round, on gradients wrapped as FSDP2 wraps
  them.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.harness.machine import commit, machine, versions
from radam_fused import FusedRAdam
from radam_fused.numerics.layout import segment_starts

LAYERS, WIDTH, KEYS, HIDDEN, VOCABULARY = 80, 8192, 1024, 28_672, 128_256
"""Llama-3-70B: 64 heads of 128, 8 of them for keys and values."""
ENDS: list[tuple[int, ...]] = [(VOCABULARY, WIDTH), (WIDTH,), (VOCABULARY, WIDTH)]
SMALL = 4096
"""Tensors of up to this many elements are real: step counts and tables, which the host reads."""
DEFAULT_OUT = Path(__file__).parents[1] / "results" / "scale" / "llama-3-70b.json"
LAUNCHES = {"squares": "grad_norm", "rows": "scalars", "step": "step"}
"""The operators that are counted, by their keys in the results."""


def layer_shapes() -> list[tuple[int, ...]]:
    """One layer's parameters, in their order in the model."""
    attention = [(WIDTH, WIDTH), (KEYS, WIDTH), (KEYS, WIDTH), (WIDTH, WIDTH)]
    return [*attention, (HIDDEN, WIDTH), (HIDDEN, WIDTH), (WIDTH, HIDDEN), (WIDTH,), (WIDTH,)]


class Shapes(nn.Module):
    """A module with parameters of the given shapes."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.empty(shape)) for shape in shapes])


def llama() -> nn.Module:
    """All 723 parameters, one module per layer."""
    return nn.Sequential(*(Shapes(layer_shapes()) for _ in range(LAYERS)), Shapes(ENDS))


class LargeAreFake(FakeTensorMode):
    """Makes tensors fake, except small ones that depend on no fake tensor; a number read from a fake tensor is 1."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        fake = any(isinstance(leaf, FakeTensor) for leaf in inputs)
        if fake and func is torch.ops.aten._local_scalar_dense.default:
            return 1.0
        if inputs and not fake:
            return func(*args, **kwargs)
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if not inputs and isinstance(result, FakeTensor) and result.numel() <= SMALL:
            return func(*args, **kwargs)
        return result


class Seen(TorchDispatchMode):
    """Records the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@contextmanager
def ranks(world: int, rank: int = 0) -> Iterator[None]:
    """A process group of so many ranks, of which only this one exists."""
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def give_gradients(params: list[Any]) -> None:
    """New gradients, wrapped as FSDP2 does: with the parameter's own specification."""
    for p in params:
        p.grad = DTensor(torch.ones_like(p._local_tensor), p._spec, requires_grad=False)


def simulated(world: int, rank: int = 0) -> dict[str, Any]:
    """Counts what a step of the model allocates, launches and communicates on one rank."""
    with ranks(world, rank), LargeAreFake(allow_non_fake_inputs=True):
        model = llama()
        mesh = init_device_mesh("cpu", (world,))
        for layer in model:
            fully_shard(layer, mesh=mesh)
        params: list[Any] = list(model.parameters())
        optimizer = FusedRAdam(params, max_grad_norm=1.0)
        give_gradients(params)
        for _ in range(7):  # the rectified step is the seventh
            with Seen() as seen:
                optimizer.step()
        local = [p._local_tensor.numel() for p in params]
        buckets = optimizer._bucket_manager.buckets
        return {
            "world": world,
            "rank": rank,
            "tensors": len(params),
            "parameters": sum(p.numel() for p in params),
            "elements": sum(local),
            "empty shards": local.count(0),
            "buckets": len(buckets),
            "state bytes": sum(
                b.exp_avg.nbytes + b.exp_avg_sq.nbytes + b.counts.shown.nbytes + b.counts.taken.nbytes for b in buckets
            ),
            "launches": {key: seen.names.count(f"radam_fused::{kind}_native") for key, kind in LAUNCHES.items()},
            "collectives": [name for name in seen.names if name.startswith(("c10d", "_c10d"))],
        }


def computed(world: int, rank: int) -> dict[str, int]:
    """A rank's elements, empty shards and state bytes by FSDP2's rule: ceil(rows / ranks) rows per rank, in order."""
    shapes = [shape for _ in range(LAYERS) for shape in layer_shapes()] + ENDS
    local = []
    for shape in shapes:
        chunk = -(-shape[0] // world)
        rows = min(chunk, max(shape[0] - rank * chunk, 0))
        local.append(rows * math.prod(shape[1:]))
    _, length = segment_starts(local)
    return {"elements": sum(local), "empty shards": local.count(0), "state bytes": 8 * length + 12 * len(local)}


CANDIDATES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "FusedRAdam": lambda params: FusedRAdam(params),
    "FusedRAdam, max_grad_norm": lambda params: FusedRAdam(params, max_grad_norm=1.0),
    "torch.optim.AdamW(fused=True)": lambda params: torch.optim.AdamW(params, fused=True),
    "torch.optim.RAdam(foreach=True)": lambda params: torch.optim.RAdam(params, foreach=True),
}


def measured(world: int, tensors: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of host time per step, by candidate, one for each round."""
    order = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in CANDIDATES}
    with ranks(world):
        mesh = init_device_mesh("cpu", (world,))
        runners = {}
        for name, make in CANDIDATES.items():
            params = [_parameter(mesh, world) for _ in range(tensors)]
            runners[name] = params, make(params)
        for turn in range(-7, rounds):
            for name in order.sample(list(runners), len(runners)):
                params, optimizer = runners[name]
                give_gradients(params)
                began = time.perf_counter()
                optimizer.step()
                if turn >= 0:
                    times[name].append((time.perf_counter() - began) * 1e3)
    return times


def _parameter(mesh: Any, world: int) -> nn.Parameter:
    local: Tensor = torch.ones(1, 4)
    return nn.Parameter(DTensor.from_local(local, mesh, [Shard(0)], shape=(world, 4), stride=(4, 1)))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.studies.fsdp_scale", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40, help="of the measurement (%(default)s)")
    parser.add_argument("--world", type=int, default=512, help="ranks of the simulation (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="the numbers, as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    times = measured(options.world, 9 * LAYERS + len(ENDS), options.rounds)
    found = [simulated(options.world, rank) for rank in (0, options.world - 1)]
    for line in found:
        arithmetic = computed(line["world"], line["rank"])
        if any(line[key] != value for key, value in arithmetic.items()):
            raise SystemExit(f"computed {arithmetic}, but the simulation found {line}")
    lines = [{"world": w, "rank": r, **computed(w, r)} for w in (8, 64, 512, 1024, 4096, 8192) for r in (0, w - 1)]
    for line in [*found, *lines]:
        print(", ".join(f"{key} {value}" for key, value in line.items()))
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"{name}: {middle:.2f} ms (quartiles {low:.2f} and {high:.2f})")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    setting = {"machine": machine(), "versions": versions(), "commit": commit(), "threads": options.threads}
    options.out.write_text(
        json.dumps({**setting, "simulated": found, "computed": lines, "host ms": times}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
