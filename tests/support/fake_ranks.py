"""DTensors of several ranks in one process, which plays each rank in turn and communicates nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

RANKS = 4


def as_each_rank(mesh: tuple[int, ...], placements: tuple[Any, ...], whole: Tensor) -> Iterator[DTensor]:
    """What `distribute_tensor` gives each of four ranks; the process is that rank until the next one is asked for."""
    for rank in range(RANKS):
        dist.init_process_group("fake", rank=rank, world_size=RANKS, store=FakeStore())
        try:
            yield distribute_tensor(whole, init_device_mesh("cpu", mesh), placements, src_data_rank=None)
        finally:
            dist.destroy_process_group()
