"""What lies in the caches when a step begins.

A last-level cache can be larger than the arrays of a case. A step repeated at once over the same arrays then measures
the cache, which no training loop does: a forward and a backward pass go through it in between. `before_step("cold")`
does what they do, in small:

- it reads and writes `FLUSH_BYTES` of something else, on all threads. None of the contestant's arrays, tables and
  Python objects is cached any more; what is, is dirty and has to be evicted first, as gradients just written would have
  to be; and the threads are awake;
- it runs forward and backward through a small network. The interpreter and torch's dispatcher are cached again, which
  the flush had thrown out and a training loop would not have: without this, every step begins with some 0.3 ms of
  fetching code that any training would find in place.

So everybody finds the same state, whoever had the turn before.

With thousands of small tensors a step is a walk over Python and C++ objects rather than over arrays, and the backward
pass that has just made their gradients has touched every one of them. `before_step("used")` stands for that: the
contestant takes two more steps, untimed, directly before the timed one. Two, as a last-level cache that takes only what
the others evict does not have everything after the first: FusedRAdam (flatten) needs 1.07, 0.69, 0.44, 0.43 ms for its
first, second, third and fourth step after another's, and no less later. Cold objects, scattered by the other
contestants' between them, are the other extreme; such a case is measured both ways.
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
    """What to call, with a contestant's step, before that step is timed."""
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
