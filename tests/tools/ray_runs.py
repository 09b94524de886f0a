"""Ray Train with two workers: what a worker does, and how a test has workers do it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model

from tests.distributed.ranks import Failed
from tests.support.paths import ROOT
from tests.tools.small import LIMIT, Run, batch, dtype_of, made, net, train_and_resume
from tests.tools.table import OPTIONS


class Loop:
    """As Ray's examples have it: DistributedDataParallel, and checkpoints that rank 0 writes."""

    def __init__(self, clip: bool, option: str, theirs: bool) -> None:
        self.dtype = dtype_of(option, theirs)
        self.model: Any = prepare_model(net(self.dtype))
        self.optimizer = made(self.model.parameters(), option, theirs)
        self.clip = clip and (theirs or option != "max_grad_norm")

    def step(self, t: int) -> float:
        x = batch(t, dist.get_rank()).to(self.dtype)
        loss = (self.model(x) - x).float().square().mean()
        loss.backward()
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), LIMIT)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def save(self, folder: str) -> None:
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        checkpoint = None
        if dist.get_rank() == 0:
            torch.save(parts, f"{folder}/state.pt")
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({}, checkpoint=checkpoint)
        dist.barrier()

    def load(self, folder: str) -> None:
        saved = torch.load(f"{folder}/state.pt", weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])


def train(clip: bool, option: str, theirs: bool) -> Run:
    """A run with a reported checkpoint, and one that begins with it."""
    return train_and_resume(lambda: Loop(clip, option, theirs))


def _all(config: dict[str, Any]) -> None:
    """Every option in turn, as starting workers takes Ray several seconds; outcomes go into a file a rank."""
    import sys

    sys.path.insert(0, config["root"])
    torch.set_num_threads(1)
    outcomes: dict[Any, Any] = {}
    for clip, option, theirs in config["runs"]:
        try:
            outcomes[clip, option, theirs] = train(clip, option, theirs)
        except Exception as error:
            outcomes[clip, option, theirs] = type(error).__name__, str(error)
    torch.save(outcomes, f"{config['folder']}/{dist.get_rank()}.pt")


class Workers:
    """Two workers of Ray's, in place of `tests.distributed.ranks.Ranks`.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
        runs = [(True, option, False) for option in OPTIONS] + [(clip, "plain", clip) for clip in (True, False)]
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        try:
            TorchTrainer(
                _all,
                train_loop_config={"root": str(ROOT), "folder": str(folder), "runs": runs},
                torch_config=TorchConfig(backend="gloo"),
                scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
                run_config=ray.train.RunConfig(storage_path=tempfile.mkdtemp()),
            ).fit()
        finally:
            ray.shutdown()
        self._found = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]

    def outcomes(self, world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What each worker returned, or a `Failed`."""
        assert (world, function) == (2, train)
        key = args[0], "plain" if args[2] else args[1], args[2]
        found = [outcomes[key] for outcomes in self._found]
        return [Failed(*outcome, "") if isinstance(outcome, tuple) else outcome for outcome in found]

    def run(self, world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """The same, and the first failure is raised."""
        results = self.outcomes(world, function, *args)
        for result in results:
            if isinstance(result, Failed):
                raise result
        return results
