"""State in the host's memory under FSDP2: ``python -m bench.studies.fsdp_host_state``, in ten minutes.

With ``CPUOffloadPolicy`` the shards, their gradients and the optimizer's state are CPU tensors, and all ranks of a host
step at the same time on its cores. Eight gloo ranks of one thread each share the cores of this machine here.

- *Time*: a model of transformer layers is sharded by `fully_shard`. Candidates take turns, in a new random order in
  each round; a step lasts until the last rank has finished it.
- *Memory traffic*: the bytes that a step's operators read and write, by their arguments (`Traffic`). DeepSpeed's
  CPUAdam calls C++ past torch's dispatcher; its bytes are those of its arrays.
- *Growth*: what each rank's memory gains over many steps of small shards.

Results go to bench/results/scale/fsdp-host-state.json, and the tables into docs/scale.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.harness.machine import commit, machine, versions
from bench.report.document import replace_between
from radam_fused import FusedRAdam

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "scale" / "fsdp-host-state.json"
REPORT = ROOT / "docs" / "scale.md"
FIRST = 7
"""Steps before any are timed or counted: RAdam is rectified from step 6 on."""


class Candidate(NamedTuple):
    name: str
    dtype: torch.dtype
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    local: bool = False
    """Whether it is given the shards as plain tensors, as its own library does."""


def _cpu_adam(params: list[nn.Parameter], **options: Any) -> torch.optim.Optimizer:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    found: torch.optim.Optimizer = DeepSpeedCPUAdam(params, **options)
    return found


HALF = torch.bfloat16
CANDIDATES = [
    Candidate("FusedRAdam", torch.float32, FusedRAdam),
    Candidate("torch AdamW, fused", torch.float32, partial(torch.optim.AdamW, fused=True)),
    Candidate("torch AdamW, foreach", torch.float32, partial(torch.optim.AdamW, foreach=True)),
    Candidate("DeepSpeed CPUAdam", torch.float32, _cpu_adam, True),
    Candidate("FusedRAdam, split", HALF, partial(FusedRAdam, master_weights="split")),
    Candidate("FusedRAdam, kahan, bf16 moments", HALF, partial(FusedRAdam, master_weights="kahan", state_dtype=HALF)),
    Candidate("torch AdamW, fused, bf16", HALF, partial(torch.optim.AdamW, fused=True)),
    Candidate("torch AdamW, foreach, bf16", HALF, partial(torch.optim.AdamW, foreach=True)),
    Candidate("DeepSpeed CPUAdam, bf16", HALF, partial(_cpu_adam, fp32_optimizer_states=True), True),
]


class Layers(nn.Module):
    """Parameters with the shapes of transformer layers of a width: 12 width^2 elements and 12 tensors a layer."""

    def __init__(self, layers: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        shapes = [(3 * width, width), (3 * width,), (width, width), (width,), (4 * width, width), (4 * width,)]
        shapes += [(width, 4 * width), *[(width,)] * 5]
        self.layers = nn.ModuleList(
            nn.ParameterList([nn.Parameter(torch.full(shape, 0.02, dtype=dtype)) for shape in shapes])
            for _ in range(layers)
        )


class Traffic(TorchDispatchMode):
    """Bytes that operators read and write, by their arguments: each tensor once, one that is written in place twice.

    Views move nothing. An operator's temporaries and what caches spare are left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        schema = func._schema
        if any(one.alias_info is not None and not one.alias_info.is_write for one in schema.returns):
            return found
        given = {one.name: value for one, value in zip(schema.arguments, args, strict=False)} | kwargs
        for one in schema.arguments:
            # Gradients are marked as written for the options that zero or unscale them; these candidates do not.
            written = one.alias_info is not None and one.alias_info.is_write and one.name != "grads"
            times = 2 if written else 1
            self.bytes += times * _bytes(given.get(one.name))
        if not any(one.alias_info is not None for one in schema.returns):
            self.bytes += _bytes(found)
        return found


def _bytes(value: Any) -> int:
    tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return sum(_local(tensor).nbytes for tensor in tensors)


def _local(tensor: Any) -> Tensor:
    found: Tensor = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
    return found


class Runner:
    """A candidate with a model of its own, on one rank."""

    def __init__(self, candidate: Candidate, layers: int, width: int, mesh: Any) -> None:
        torch.manual_seed(0)
        model = Layers(layers, width, candidate.dtype)
        policy = CPUOffloadPolicy(pin_memory=False)
        for layer in model.layers:
            fully_shard(layer, mesh=mesh, offload_policy=policy)
        fully_shard(model, mesh=mesh, offload_policy=policy)
        self.sharded: list[Any] = list(model.parameters())
        self.elements = sum(_local(p).numel() for p in self.sharded)
        self.grads = [torch.randn_like(_local(p)) * 1e-3 for p in self.sharded]
        self.params = [nn.Parameter(_local(p)) for p in self.sharded] if candidate.local else self.sharded
        self.local = candidate.local
        self.optimizer = candidate.make(self.params)
        self.model = model  # FSDP2's hooks are its own

    def give_gradients(self) -> None:
        """As after a backward pass: wrapped again, with the specification of the parameter."""
        for p, sharded, grad in zip(self.params, self.sharded, self.grads, strict=True):
            p.grad = grad if self.local else DTensor(grad, sharded._spec, requires_grad=False)

    def step(self) -> None:
        self.give_gradients()
        self.optimizer.step()

    def traffic(self) -> int:
        """Bytes of one step."""
        self.give_gradients()
        if self.local:
            state = [leaf for leaf in tree_leaves(list(self.optimizer.state.values())) if isinstance(leaf, Tensor)]
            self.optimizer.step()
            return 2 * _bytes(self.params) + _bytes(self.grads) + 2 * _bytes(state)
        with Traffic() as counted:
            self.optimizer.step()
        return counted.bytes


def available() -> list[str]:
    """The names of the candidates that this environment has."""
    names = [one.name for one in CANDIDATES if not one.local]
    try:
        _cpu_adam([nn.Parameter(torch.zeros(8))])
    except Exception as error:
        print(f"DeepSpeed CPUAdam: left out ({type(error).__name__}: {error})", file=sys.stderr)
        return names
    return [one.name for one in CANDIDATES]


def _timed(runners: dict[str, Runner], rounds: int) -> dict[str, list[float]]:
    """Seconds of each candidate's steps, until the last rank was ready."""
    order = random.Random(0)  # the same on every rank
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(-FIRST, rounds):
        for name in order.sample(list(runners), len(runners)):
            runners[name].give_gradients()
            dist.barrier()
            began = time.perf_counter()
            runners[name].optimizer.step()
            dist.barrier()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def resident() -> int:
    """Bytes of this process that are in memory and are its own."""
    gc.collect()
    fields = Path("/proc/self/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


def _growth(runner: Runner, steps: int) -> int:
    """Bytes that a rank's memory gains over so many steps, after as many that are a tenth."""
    for _ in range(steps // 10):
        runner.step()
    before = resident()
    for _ in range(steps):
        runner.step()
    return resident() - before


def work(rank: int, options: argparse.Namespace, names: list[str], store: str) -> None:
    """What the process of one rank does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=options.ranks, timeout=timedelta(hours=1))
    try:
        _measure(rank, options, names)
        dist.barrier()
    finally:
        gc.collect()  # modules refer to the group in circles: one that ends at the process's exit may abort it
        dist.destroy_process_group()


def _measure(rank: int, options: argparse.Namespace, names: list[str]) -> None:
    """Times and counts; rank 0 saves what all have found."""
    mesh = init_device_mesh("cpu", (options.ranks,))
    chosen = [one for one in CANDIDATES if one.name in names]
    growth = {}
    for one in chosen:  # first, with nothing else in memory
        growth[one.name] = _growth(Runner(one, 1, 32, mesh), options.steps) if options.steps else None
        dist.barrier()
    runners = {one.name: Runner(one, options.layers, options.width, mesh) for one in chosen}
    seconds = _timed(runners, options.rounds)
    per_element = {name: runner.traffic() / runner.elements for name, runner in runners.items()}
    everywhere: list[Any] = [None] * options.ranks
    dist.all_gather_object(everywhere, growth)
    if rank == 0:
        rows = [
            {
                "candidate": one.name,
                "dtype": str(one.dtype).removeprefix("torch."),
                "bytes per element": per_element[one.name],
                "seconds": seconds[one.name],
                "growth in bytes": [ranks[one.name] for ranks in everywhere],
            }
            for one in chosen
        ]
        elements = sum(p.numel() for p in next(iter(runners.values())).sharded)
        setting = {"ranks": options.ranks, "elements": elements, "tensors": len(runners[names[0]].sharded)}
        setting |= {"steps of growth": options.steps}
        about = {"machine": machine(), "versions": versions(), "commit": commit(), **setting}
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


def tables(found: dict[str, Any]) -> str:
    """The rows as docs/scale.md shows them."""
    steps = found["steps of growth"]
    lines = [
        f"| {found['ranks']} ranks of one thread | bytes an element | ms a step | quartiles | GB/s | "
        f"against FusedRAdam | KiB a rank gains in {steps:,} steps |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    ours: dict[str, list[float]] = {}
    for row in found["rows"]:
        ours.setdefault(row["dtype"], row["seconds"])
        low, middle, high = statistics.quantiles([1e3 * s for s in row["seconds"]], n=4)
        ratio = statistics.median(s / mine for s, mine in zip(row["seconds"], ours[row["dtype"]], strict=True))
        speed = found["elements"] * row["bytes per element"] / middle / 1e6
        gains = [gain for gain in row["growth in bytes"] if gain is not None]
        gain = f"{statistics.median(gains) / 1024:,.0f}" if gains else "-"
        lines.append(
            f"| {row['candidate']} | {row['bytes per element']:.1f} | {middle:,.0f} | {low:,.0f} to {high:,.0f} | "
            f"{speed:.1f} | {ratio:.2f} | {gain} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, saves the rows, and prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.studies.fsdp_host_state", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10_000, help="over which memory is watched (%(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", type=Path, default=None, help="a page whose table is replaced, as docs/scale.md")
    options = parser.parse_args(arguments)
    names = available()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    store = options.results.with_suffix(".store").absolute()
    store.unlink(missing_ok=True)
    try:
        mp.spawn(work, (options, names, str(store)), nprocs=options.ranks)
    finally:
        store.unlink(missing_ok=True)
    found = json.loads(options.results.read_text())
    if options.report is not None:
        replace_between(options.report, "host state", tables(found))
    print(tables(found))


if __name__ == "__main__":
    main()
