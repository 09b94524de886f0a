"""Pre-train the demo GPT on N processes: FSDP2, FusedRAdam with clipping in the step, and checkpoints to resume from.

    torchrun --standalone --nproc-per-node 2 examples/pretrain.py
    torchrun --standalone --nproc-per-node 8 examples/pretrain.py --layers 12 --width 768 --heads 12 --context 256

Each process takes its GPU, or all take the CPU where there is none. The batch is that of the whole run: N processes see
the windows that one would, so the losses do not depend on N but for the last digits. Started again with the same
command, a run goes on from its last complete checkpoint, on any number of processes.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from corpus import Corpus
from gpt import GPT, GPTConfig
from radam_fused import FusedRAdam

DEFAULT_OUT = Path(__file__).resolve().parent / "out" / "pretrain"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")
    p.add_argument("--steps", type=int, default=400, help="(%(default)s)")
    p.add_argument("--batch", type=int, default=8, help="windows of a step, over all processes (%(default)s)")
    p.add_argument("--layers", type=int, default=4, help="blocks of the model (%(default)s)")
    p.add_argument("--width", type=int, default=128, help="of the model (%(default)s)")
    p.add_argument("--heads", type=int, default=4, help="of each attention (%(default)s)")
    p.add_argument("--context", type=int, default=64, help="bytes that the model sees (%(default)s)")
    p.add_argument("--lr", type=float, default=4e-3, help="at the start; it falls to zero (%(default)s)")
    p.add_argument("--max-grad-norm", type=float, default=1.0, help="of the whole model (%(default)s)")
    p.add_argument("--bf16", action="store_true", help="compute in bfloat16; parameters and gradients stay float32")
    p.add_argument("--save-every", type=int, default=100, help="steps between checkpoints (%(default)s)")
    p.add_argument("--out", type=Path, default=DEFAULT_OUT, help="checkpoints and log (examples/out/pretrain)")
    return p


class Pretraining:
    """One process's part of the run."""

    def __init__(self, args: argparse.Namespace, device: str) -> None:
        self.args, self.device = args, device
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        if args.batch % self.world:
            raise SystemExit(f"--batch {args.batch} is not a multiple of the {self.world} processes")
        torch.manual_seed(0)  # the same first weights on every process, of which each keeps its part
        self.model = GPT(GPTConfig(args.layers, args.width, args.heads, args.context)).to(device)
        mesh = init_device_mesh(device, (self.world,))
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16) if args.bf16 else MixedPrecisionPolicy()
        for module in (*self.model.blocks, self.model):
            fully_shard(module, mesh=mesh, mp_policy=policy)
        self.optimizer = FusedRAdam(
            self.model.parameter_groups(0.1),
            lr=args.lr,
            betas=(0.9, 0.99),
            decoupled_weight_decay=True,
            max_grad_norm=args.max_grad_norm,
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, args.steps)
        self.done = 0
        corpus = Corpus.load(device)
        self.batches = corpus.batches(args.batch, args.context, seed=0)

    def step(self) -> tuple[float, float]:
        """One step; the loss of the whole batch, and the norm of the whole gradient before clipping."""
        share = self.args.batch // self.world
        mine = slice(self.rank * share, (self.rank + 1) * share)
        inputs, targets = next(self.batches)
        loss = self.model.loss(inputs[mine], targets[mine])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.done += 1
        mean = loss.detach().double()
        dist.all_reduce(mean, op=dist.ReduceOp.SUM)
        return mean.item() / self.world, float(self.optimizer.last_grad_norm)

    def _parts(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "schedule": self.schedule.state_dict(), "done": self.done}

    def save(self) -> None:
        """One folder per checkpoint, so that an incomplete one never overwrites a complete one."""
        dcp.save(self._parts(), checkpoint_id=self.args.out / f"step-{self.done:06}")

    def resume(self) -> None:
        """Resumes from the last complete checkpoint, if there is one: a checkpoint's metadata are written last."""
        complete = sorted(folder.parent for folder in self.args.out.glob("step-*/.metadata"))
        if not complete:
            return
        parts = self._parts()
        dcp.load(parts, checkpoint_id=complete[-1])
        set_state_dict(self.model, self.optimizer, model_state_dict=parts["model"], optim_state_dict=parts["optimizer"])
        self.schedule.load_state_dict(parts["schedule"])
        self.done = parts["done"]
        for _ in range(self.done):
            next(self.batches)

    def report(self, text: str) -> None:
        """Prints on the first process."""
        if self.rank == 0:
            print(text, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """One process of the run; torchrun starts them all."""
    args = parser().parse_args(argv)
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        run = Pretraining(args, device)
        run.resume()
        size = sum(p.numel() for p in run.model.parameters())
        run.report(f"{size:,} parameters on {run.world} processes ({device}), from step {run.done}")
        while run.done < args.steps:
            loss, norm = run.step()
            if run.done % 20 == 0 or run.done == args.steps:
                run.report(json.dumps({"step": run.done, "loss": round(loss, 6), "grad_norm": round(norm, 6)}))
            if run.done % args.save_every == 0:
                run.save()
    finally:
        run = None  # free what refers to the process group before the group
        gc.collect()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
