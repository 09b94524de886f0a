"""torch.distributed.checkpoint: saved at one number of ranks, loaded at others, training on with the same bits.

Gradients come from a formula, the same for any number of ranks: every run here must have the bits of one process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from radam_fused import FusedRAdam
from tests.distributed.ranks import Failed, Ranks
from tests.distributed.test_fsdp import PRECISIONS, sharded
from tests.distributed.training import OPTIONS, Record, difference, net, train
from tests.support.paths import ROOT

BEFORE, AFTER = 5, 4
"""Steps before and after the checkpoint: RAdam rectifies from the sixth on."""
MODES: dict[str, dict[str, Any]] = {
    **PRECISIONS,
    "fp64": {"dtype": torch.float64},
    "bf16": {"dtype": torch.bfloat16},
    "fp16-fp32": {"dtype": torch.float16, "master_weights": "fp32"},
    "fp16-kahan": {"dtype": torch.float16, "master_weights": "kahan"},
}
"""Whose bits do not depend on how many ranks there are. Those that round at random are in test_low_precision.py."""


def gradient(p: Tensor, k: int, t: int) -> Tensor:
    """Of parameter k in step t, whatever rank computes it."""
    value = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * t + k)).to(p.dtype)
    return (
        distribute_tensor(value, p.device_mesh, p.placements, src_data_rank=None) if isinstance(p, DTensor) else value
    )


def formula(model: nn.Module) -> Any:
    def backward(t: int) -> None:
        for k, p in enumerate(model.parameters()):
            p.grad = gradient(p, k, t)

    return backward


def made(kind: str, precision: str) -> tuple[nn.Module, FusedRAdam]:
    options = dict(MODES[precision])
    model = net(options.pop("dtype"))
    if kind != "plain":
        model = sharded(kind, model)
    groups = [{"params": [p for p in model.parameters() if p.ndim == d], "lr": 0.01 * (d + 1)} for d in (1, 2)]
    return model, FusedRAdam(groups, **{**OPTIONS, **options})


def save(folder: Path, kind: str, precision: str) -> None:
    model, optimizer = made(kind, precision)
    train(model, optimizer, formula(model), range(BEFORE))
    parts = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.save(parts, checkpoint_id=folder)


def load(folder: Path, kind: str, precision: str, fresh: bool) -> Record:
    """Goes on from a checkpoint, in an optimizer that has taken no step or some."""
    model, optimizer = made(kind, precision)
    if not fresh:
        train(model, optimizer, lambda t: formula(model)(t + 50), range(2))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(9.0)
    weights, states = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": states}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=states)
    return train(model, optimizer, formula(model), range(BEFORE, BEFORE + AFTER))


def uninterrupted(precision: str) -> Record:
    model, optimizer = made("plain", precision)
    return train(model, optimizer, formula(model), range(BEFORE + AFTER))


@pytest.mark.sampled
@pytest.mark.parametrize("precision", MODES)
@pytest.mark.parametrize("kind", ["one mesh", "plain"])
def test_saved_at_two_loaded_at_others(kind: str, precision: str, ranks: Ranks, tmp_path: Path) -> None:
    ranks.run(2, save, tmp_path, kind, precision)
    expected = uninterrupted(precision)
    for world in (1, 3, 4):
        for record in ranks.run(world, load, tmp_path, kind, precision, world != 3):
            assert difference(record, expected) is None
            assert all(float(state["step"]) == BEFORE + AFTER for state in record.states)


@pytest.mark.parametrize("there", ["tensor parallel", "hybrid", "plain"])
def test_from_one_mesh_to_another(there: str, ranks: Ranks, tmp_path: Path) -> None:
    ranks.run(2, save, tmp_path, "one mesh", "fp32")
    for record in ranks.run(4, load, tmp_path, there, "fp32", True):
        assert difference(record, uninterrupted("fp32")) is None


def test_a_spoilt_checkpoint_is_noticed(ranks: Ranks, tmp_path: Path) -> None:
    """The negative control: the moments and counts of another run, one step shorter."""
    ranks.run(2, save_shorter, tmp_path)
    record = ranks.run(3, load, tmp_path, "one mesh", "fp32", True)[0]
    assert difference(record, uninterrupted("fp32")) == "parameter 0"


def save_shorter(folder: Path) -> None:
    model, optimizer = made("one mesh", "fp32")
    train(model, optimizer, formula(model), range(BEFORE - 1))
    parts = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.save(parts, checkpoint_id=folder)


def gathered(to: str) -> Record:
    """Whole tensors on one rank, sent to all, which keep their parts."""
    model, optimizer = made("one mesh", "fp32")
    train(model, optimizer, formula(model), range(BEFORE))
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    states = get_optimizer_state_dict(model, optimizer, options=options)
    again, resumed = made("one mesh", "fp32")
    again.load_state_dict(model.state_dict())
    if to == "broadcast":
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_optimizer_state_dict(again, resumed, states, options=options)
    else:  # straight into the optimizer: a whole tensor for a DTensor parameter, of which each rank takes its part
        whole = optimizer.state_dict()
        for entry in whole["state"].values():
            entry |= {name: value.full_tensor() for name, value in entry.items() if isinstance(value, DTensor)}
        resumed.load_state_dict(whole)
    return train(again, resumed, formula(again), range(BEFORE, BEFORE + AFTER))


@pytest.mark.parametrize("to", ["broadcast", "load_state_dict"])
def test_whole_tensors(to: str, ranks: Ranks) -> None:
    for record in ranks.run(2, gathered, to):
        assert difference(record, uninterrupted("fp32")) is None


def misplaced() -> None:
    model, optimizer = made("one mesh", "fp32")
    train(model, optimizer, formula(model), range(2))
    state_dict = optimizer.state_dict()
    state_dict["state"][3]["exp_avg"] = state_dict["state"][3]["exp_avg"].redistribute(placements=[Replicate()])
    optimizer.load_state_dict(state_dict)


def test_other_placements_are_refused(ranks: Ranks) -> None:
    for outcome in ranks.outcomes(2, misplaced):
        assert isinstance(outcome, Failed)
        assert outcome.name == "ValueError"
        assert "'exp_avg' of param_groups[0]['params'][3] is on" in outcome.message
        assert "must be as its parameter" in outcome.message


# A process killed in the middle of a save.

SCRIPT = """
import sys
from tests.distributed.test_checkpoints import interrupted
interrupted(*sys.argv[1:])
"""


class Slow(dcp.FileSystemWriter):
    """Reports when it has come to a point of the save, and waits there until it is killed.

    The points: "tensors" are cut short, or all of them are written and the "metadata" are not.
    """

    def __init__(self, folder: Path, point: str, sign: Path) -> None:
        super().__init__(folder)
        self._folder, self._point, self._sign = folder, point, sign

    def _wait(self) -> None:
        self._sign.touch()
        time.sleep(3600)

    def write_data(self, plan: Any, planner: Any) -> Any:
        if self._point == "metadata":
            return super().write_data(plan, planner)
        super().write_data(plan, planner).wait()
        for path in self._folder.glob(f"__{dist.get_rank()}_*"):
            os.truncate(path, path.stat().st_size // 2)
        return self._wait()

    def finish(self, metadata: Any, results: Any) -> None:
        self._wait()


def interrupted(rank: str, folder: str, point: str, precision: str) -> None:
    """A run that saves after steps 2 and 5, and is killed before the second checkpoint is complete."""
    place = Path(folder)
    dist.init_process_group("gloo", init_method=f"file://{place / 'rendezvous'}", rank=int(rank), world_size=2)
    model, optimizer = made("one mesh", precision)
    backward = formula(model)
    for begin, end in ((0, 2), (2, BEFORE)):
        train(model, optimizer, backward, range(begin, end))
        parts = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
        if end == BEFORE:
            dcp.save(parts, storage_writer=Slow(place / f"step-{end}", point, place / f"saving-{rank}"))
        else:
            dcp.save(parts, checkpoint_id=place / f"step-{end}")


def resumed(folder: Path, precision: str) -> tuple[list[str], Record]:
    """Goes on from the last checkpoint that is complete, as its metadata, written last, says."""
    complete = sorted(path.name for path in folder.glob("step-*") if (path / ".metadata").exists())
    model, optimizer = made("one mesh", precision)
    weights, states = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": states}, checkpoint_id=folder / complete[-1])
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=states)
    done = int(float(optimizer.state[model.up.weight]["step"]))
    return complete, train(model, optimizer, formula(model), range(done, BEFORE + AFTER))


def refused(folder: Path, precision: str) -> bool:
    """The negative control: whether torch takes a folder for no checkpoint."""
    try:
        load(folder, "one mesh", precision, True)
    except dcp.CheckpointException:  # which is no Exception
        return True
    return False


@pytest.mark.long
@pytest.mark.sampled
@pytest.mark.parametrize("precision", ["fp32", "bf16-split"])
@pytest.mark.parametrize("point", ["tensors", "metadata"])
def test_killed_while_saving(point: str, precision: str, ranks: Ranks, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [str(tmp_path), point, precision]
    processes = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, str(rank), *arguments], env=environment) for rank in range(2)
    ]
    signs = [tmp_path / f"saving-{rank}" for rank in range(2 if point == "tensors" else 1)]  # metadata are rank 0's
    try:
        deadline = time.monotonic() + 300
        while not all(sign.exists() for sign in signs):
            assert all(process.poll() is None for process in processes)
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert any((tmp_path / f"step-{BEFORE}").iterdir())  # something of the second has been written
    for complete, record in ranks.run(2, resumed, tmp_path, precision):
        assert complete == ["step-2"]
        assert difference(record, uninterrupted(precision)) is None
    assert ranks.run(1, refused, tmp_path / f"step-{BEFORE}", precision) == [True]
