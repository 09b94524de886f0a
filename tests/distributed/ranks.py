"""Real processes for distributed tests: four that wait for work, so that a test costs a process group and no imports.

A test hands `Ranks.run` a function of a module and how many ranks are to run it; each gets a process group of its own
(gloo, through a file) and returns what can be pickled. A rank that is not done in time is a hang: it fails the test,
and all processes are started again, as they are where the process group cannot be made.
"""

from __future__ import annotations

import datetime
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

MOST = 4
SECONDS = 300.0
"""How long a rank may take; far more than any test does, on a machine that is busy with others."""
MEETINGS = 3
"""How often ranks try to make their process group."""


class Failed(Exception):
    """What a rank raised: its class's name, its message and its traceback."""

    def __init__(self, name: str, message: str, trace: str) -> None:
        super().__init__(name, message, trace)
        self.name, self.message, self.trace = name, message, trace

    def __str__(self) -> str:
        return f"{self.name}: {self.message}\n{self.trace}"


def _meet(world: int, rank: int, rendezvous: Path, seconds: float) -> None:
    """Makes the process group, unless there is one."""
    import torch.distributed as dist

    if dist.is_initialized():
        return
    # torch names a group by this count, and resets it only where one is destroyed: after a group that could not be
    # made, ranks of different counts would wait for each other in every later test.
    dist.distributed_c10d._world.group_count = 0
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=seconds),
    )


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
            _meet(world, rank, rendezvous, seconds)
        except Exception:
            pipe.send(traceback.format_exc())
            continue
        pipe.send(None)
        try:
            pipe.recv()  # all ranks have met
        except EOFError:
            return
        try:
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
            if "COVERAGE_PROCESS_CONFIG" in os.environ:
                process.join(20)  # a rank writes down which lines it ran as it ends
            process.kill()
            process.join()
        self._processes, self._pipes = [], []

    def outcomes(self, world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What each of ``world`` ranks returned, or a `Failed`.

        Raises:
            TimeoutError: a rank that hangs.
        """
        for attempt in range(MEETINGS):
            trace = self._met(world, function, args)
            if trace is None:
                break
            # gloo's connections of a group fail now and then on a machine that is busy; that is not what a test is of.
            print(f"the ranks could not meet, attempt {attempt + 1} of {MEETINGS}:\n{trace}", file=sys.stderr)
            self.stop()
        else:
            raise RuntimeError(f"{world} ranks could not meet in {MEETINGS} attempts:\n{trace}")
        for pipe in self._pipes[:world]:
            pipe.send("met")
        return [self._answer(rank, world, function) for rank in range(world)]

    def _met(self, world: int, function: Callable[..., Any], args: tuple[Any, ...]) -> str | None:
        """Hands ``world`` processes their work, and waits for their process group: None, or why there is none."""
        if not self._processes:
            self._start()
        self._runs += 1
        rendezvous = Path(self._folder.name, str(self._runs))
        waiting = {pipe: rank for rank, pipe in enumerate(self._pipes[:world])}
        for pipe in waiting:
            pipe.send((world, rendezvous, function, args))
        while waiting:
            ready = wait(list(waiting), SECONDS * 1.5)
            if not ready:
                return f"ranks {sorted(waiting.values())} wait for others"
            for pipe in ready:
                rank = waiting.pop(pipe)
                trace = self._answer(rank, world, function)
                if trace is not None:
                    return trace
        return None

    def _answer(self, rank: int, world: int, function: Callable[..., Any]) -> Any:
        """What a process sends next."""
        pipe = self._pipes[rank]
        if not pipe.poll(self.seconds * 1.5):
            self.stop()
            raise TimeoutError(f"rank {rank} of {world} hangs in {function.__name__}")
        try:
            return pipe.recv()
        except EOFError:
            self.stop()
            raise RuntimeError(f"the process of rank {rank} of {world} died in {function.__name__}") from None

    def run(self, world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """The same, and the first failure is raised."""
        results = self.outcomes(world, function, *args)
        for result in results:
            if isinstance(result, Failed):
                raise result
        return results
