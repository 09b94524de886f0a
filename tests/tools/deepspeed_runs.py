"""DeepSpeed with an optimizer of the user's: what a rank does."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from typing import Any

import deepspeed
import torch.distributed as dist

from radam_fused import step_in_backward
from tests.tools.small import HYPER, LIMIT, SAVED_AT, STEPS, Layouts, Run, batch, net, optimizer_class
from tests.tools.table import OPTIONS


def engine(stage: int, bf16: bool, option: str, theirs: bool, clip: float = LIMIT) -> Any:
    """DeepSpeed's engine over the model and the optimizer, in sub-groups of half the model."""
    os.environ["LOCAL_RANK"] = str(dist.get_rank())
    communication: Any = sys.modules["deepspeed.comm.torch"]
    communication.build_shm_op = lambda: None  # its own all-reduce on the CPU takes a minute to compile
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    model = net()
    optimizer = optimizer_class(theirs)(model.parameters(), **HYPER, **({} if theirs else OPTIONS[option]))
    if option == "step_in_backward" and not theirs:
        step_in_backward(optimizer)
    configuration = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_clipping": 0.0 if option == "max_grad_norm" and not theirs else clip,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, "sub_group_size": 8500},
        "bf16": {"enabled": bf16},
        "steps_per_print": 10**9,
    }
    return deepspeed.initialize(model=model, optimizer=optimizer, config=configuration)[0]


def steps(engine: Any, first: int, last: int, layouts: Layouts | None = None) -> Run:
    """Trains from the first step up to the last."""
    run = Run()
    for t in range(first, last):
        x = batch(t, dist.get_rank()).to(next(engine.module.parameters()).dtype)
        loss = (engine(x) - x).float().square().mean()
        engine.backward(loss)
        before = layouts.made if layouts else 0
        engine.step()
        run.layouts.append(layouts.made - before if layouts else 0)
        run.losses.append(loss.item())
    return run


def train(stage: int, bf16: bool, option: str, theirs: bool, clip: float = LIMIT) -> Run:
    """A run with a checkpoint in between, and one that resumes from it."""
    folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(folder)
    whole = engine(stage, bf16, option, theirs, clip)
    with Layouts() as layouts:
        run = steps(whole, 0, SAVED_AT, layouts)
        whole.save_checkpoint(folder[0])
        rest = steps(whole, SAVED_AT, STEPS, layouts)
    resumed = engine(stage, bf16, option, theirs, clip)
    assert resumed.load_checkpoint(folder[0])[0] is not None
    run.resumed = steps(resumed, SAVED_AT, STEPS).losses
    run.losses += rest.losses
    run.layouts += rest.layouts
    return run


def forgetful(stage: int) -> tuple[list[float], list[float]]:
    """The losses after a checkpoint, without its moments and with them."""
    folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(folder)
    whole = engine(stage, False, "plain", False)
    steps(whole, 0, SAVED_AT)
    whole.save_checkpoint(folder[0])
    resumed = engine(stage, False, "plain", False)
    resumed.load_checkpoint(folder[0], load_optimizer_states=False)
    return steps(resumed, SAVED_AT, STEPS).losses, steps(whole, SAVED_AT, STEPS).losses


def swapped() -> int:
    """How many buckets ten steps make where user code drops the state before each: the control of the count."""
    whole = engine(1, False, "plain", False)
    with Layouts() as layouts:
        for t in range(STEPS):
            whole.optimizer.optimizer.state.clear()
            steps(whole, t, t + 1)
    return layouts.made
