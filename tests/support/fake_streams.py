"""CUDA's streams and events for CPU tensors: what is enqueued runs at random times, in any order that they allow.

Inside a `World` copies with ``non_blocking=True`` and zeroed gradients are put on the current stream, as on a GPU, and
the host goes on. Work that is not ordered will, under some seed, run in the wrong order.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

DEFERRED = {torch.ops.aten.copy_.default: 2, torch.ops.aten._foreach_zero_.default: None}
"""Operations that go to a stream, and which argument, if any, says so."""


class Mark:
    """One recording of an event."""

    def __init__(self) -> None:
        self.done = False


class Stream:
    def __init__(self, world: World) -> None:
        self.world = world
        self.queue: deque[Callable[[], None] | Mark] = deque()  # a mark that is met is waited for
        world.streams.append(self)

    def record(self) -> Mark:
        mark = Mark()
        self.world.put(self, lambda: setattr(mark, "done", True))
        return mark

    def wait_stream(self, other: Stream) -> None:
        self.world.put(self, other.record())

    def wait_event(self, event: Event) -> None:
        if event.mark is not None:
            self.world.put(self, event.mark)


class Event:
    def __init__(self, world: World) -> None:
        self.world = world
        self.mark: Mark | None = None

    def record(self, stream: Stream) -> None:
        self.mark = stream.record()

    def synchronize(self) -> None:
        while self.mark is not None and not self.mark.done:
            self.world.advance()


class World(TorchDispatchMode):
    """Streams, and who runs when."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self._eagerness = ((0,), (0, 0, 0, 1), (0, 0, 1, 3))[seed % 3]  # how much runs whenever something is enqueued
        self.streams: list[Stream] = []
        self.current = Stream(self)

    def put(self, stream: Stream, item: Callable[[], None] | Mark) -> None:
        stream.queue.append(item)
        for _ in range(self.random.choice(self._eagerness)):
            self.advance()

    def advance(self) -> None:
        """Runs the next operation in the queue of some stream that need not wait."""
        able = [s for s in self.streams if s.queue and (not isinstance(s.queue[0], Mark) or s.queue[0].done)]
        if able:
            item = self.random.choice(able).queue.popleft()
            if not isinstance(item, Mark):
                with _disable_current_modes():
                    item()
        else:
            assert not any(stream.queue for stream in self.streams), "the streams wait for each other"

    def synchronize(self) -> None:
        while any(stream.queue for stream in self.streams):
            self.advance()

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextmanager
    def replacing_cuda(self) -> Iterator[World]:
        """Lets ``torch.cuda`` hand out these streams and events."""
        with (
            patch.multiple(
                torch.cuda,
                Stream=lambda device: Stream(self),
                Event=lambda: Event(self),
                current_stream=lambda device: self.current,
                stream=self.stream,
            ),
            self,
        ):
            yield self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flag = DEFERRED.get(func, -1)
        if flag == -1 or (flag is not None and not (len(args) > flag and args[flag])):
            return func(*args, **(kwargs or {}))
        operands = args if flag is None else args[:flag]
        self.put(self.current, lambda: func(*operands))
        return None if flag is None else args[0]
