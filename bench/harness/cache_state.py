"""Brings the CPU's caches into a known state before each timed step.

A last-level cache can be larger than a case's arrays. A step that is repeated immediately over the same arrays then
measures the cache, although in a training loop a forward and a backward pass run in between. `before_step("cold")`
imitates them:

- It reads and writes `FLUSH_BYTES` of other memory, on all threads. None of the candidate's arrays, tables and Python
  objects stays cached. The cached lines are dirty and must be evicted first, as freshly written gradients must be. The
  threads are awake.
- It runs forward and backward through a small network. This caches the interpreter's and torch's dispatcher's code
  again, which the flush has evicted and a training loop would have in the cache; otherwise every step begins with about
  0.3 ms of fetching code.

So every candidate finds the same state, whichever candidate stepped before it.

With thousands of small tensors a step mostly reads Python and C++ objects instead of arrays, and the backward pass that
just made their gradients has read every one of them. `before_step("used")` stands for that: the candidate takes two
untimed steps directly before the timed one. Two, because a last-level cache that only takes what the inner caches evict
does not hold everything after the first: FusedRAdam (flatten) needs 1.07, 0.69, 0.44, 0.43 ms for its first to fourth
step after another candidate's, and no less later. The opposite extreme are cold objects with other candidates' objects
between them; such a case is measured both ways.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

FLUSH_BYTES = 512 * 2**20

STATES = ("cold", "used")

USED = 2
"""Untimed steps before a timed one."""


def used(step: Callable[[], object]) -> None:
    for _ in range(USED):
        step()


def before_step(caches: str) -> Callable[[Callable[[], object]], None]:
    """A function to call with a candidate's step before that step is timed."""
    if caches == "used":
        return used
    flush = torch.zeros(FLUSH_BYTES // 4)
    network = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    batch = torch.ones(8, 32)

    def cold(_: Callable[[], object]) -> None:
        flush.add_(1.0)
        network.zero_grad()
        nn.functional.mse_loss(network(batch), batch).backward()

    return cold
