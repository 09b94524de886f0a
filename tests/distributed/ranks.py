"""Real processes for distributed tests: four that wait for work, so that a test costs a process group and no imports.

A test hands `Ranks.run` a function of a module and how many ranks are to run it; each gets a process group of its own
(gloo, through a file) and returns what can be pickled. A rank that is not done in time is a hang: it fails the test,
and all processes are started again.
"""

from __future__ import annotations

import datetime
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MOST = 4
SECONDS = 300.0
"""How long a rank may take; far more than any test does, on a machine that is busy with others."""


class Failed(Exception):
    """What a rank raised: its class's name, its message and its traceback."""

    def __init__(self, name: str, message: str, trace: str) -> None:
        super().__init__(name, message, trace)
        self.name, self.message, self.trace = name, message, trace

    def __str__(self) -> str:
        return f"{self.name}: {self.message}\n{self.trace}"


def _serve(pipe: Connection, rank: int, one_group: bool, seconds: float) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    while True:
        try:
            world, rendezvous, function, args = pipe.recv()
        except EOFError:
            return
        try:
            if not dist.is_initialized():
                # torch names a group by this count, and resets it only where one is destroyed: after a group that could
                # not be made, ranks of different counts would wait for each other in every later test.
                dist.distributed_c10d._world.group_count = 0
                dist.init_process_group(
                    "gloo",
                    init_method=f"file://{rendezvous}",
                    rank=rank,
                    world_size=world,
                    timeout=datetime.timedelta(seconds=seconds),
                )
            result: Any = function(*args)
        except Exception as error:
            result = Failed(type(error).__name__, str(error), traceback.format_exc())
        finally:
            if dist.is_initialized() and not one_group:
                dist.destroy_process_group()
        pipe.send(result)


class Ranks:
    """Processes, started when they are first needed.

    Args:
        most: how many.
        one_group: every function runs in the same process group, of all processes: for tools that keep what they
            have made of it.
        seconds: how long a rank may take.
    """

    def __init__(self, most: int = MOST, one_group: bool = False, seconds: float = SECONDS) -> None:
        self._most, self._one_group, self.seconds = most, one_group, seconds
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._folder = tempfile.TemporaryDirectory(prefix="ranks")
        self._runs = 0

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        for rank in range(self._most):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, self._one_group, self.seconds), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def stop(self) -> None:
        """Ends all processes, whatever they do."""
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            pipe.close()
            process.kill()
            process.join()
        self._processes, self._pipes = [], []

    def outcomes(self, world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What each of ``world`` ranks returned, or a `Failed`.

        Raises:
            TimeoutError: a rank that hangs.
        """
        if not self._processes:
            self._start()
        self._runs += 1
        rendezvous = Path(self._folder.name, str(self._runs))
        for pipe in self._pipes[:world]:
            pipe.send((world, rendezvous, function, args))
        results = []
        for rank, pipe in enumerate(self._pipes[:world]):
            if not pipe.poll(self.seconds * 1.5):
                self.stop()
                raise TimeoutError(f"rank {rank} of {world} hangs in {function.__name__}")
            try:
                results.append(pipe.recv())
            except EOFError:
                self.stop()
                raise RuntimeError(f"the process of rank {rank} of {world} died in {function.__name__}") from None
        return results

    def run(self, world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """The same, and the first failure is raised."""
        results = self.outcomes(world, function, *args)
        for result in results:
            if isinstance(result, Failed):
                raise result
        return results
