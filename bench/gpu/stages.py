"""Runs stages one after the other, each under a time limit; a stage that fails does not stop the others.

A stage is a list of tasks; a task is one process with its own log. A process that exceeds its limit is interrupted, so
that it can report how far it came, and then killed with its children. What the stages do is in `stage_list`.

Times are in seconds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
GRACE = 8.0
"""Seconds that an interrupted process has to end by itself."""
LOG_BYTES = 2 * 2**20
"""The log's last bytes that are kept, per task."""

Verdict = tuple[str, str]
"""`PASSED`, `FAILED` or `SKIPPED`, and the reason in one line."""


def by_status(status: int, log: str) -> Verdict:
    """Judges a task by its exit status."""
    last = log.strip().splitlines()[-1:]
    return (PASSED, "") if status == 0 else (FAILED, ": ".join([f"exit status {status}", *last])[:300])


@dataclass(frozen=True)
class Task:
    """One process.

    Attributes:
        name: what reports call it.
        command: its arguments; "{seconds}" stands for its time limit.
        environment: changes to this process's environment; None removes a variable.
        judge: the verdict for an exit status and a log.
        limit: seconds that it may take, if that is less than its stage has.
        missing: why it cannot run here and is skipped; None if it can.
    """

    name: str
    command: Sequence[str]
    environment: dict[str, str | None] = field(default_factory=dict)
    judge: Callable[[int, str], Verdict] = by_status
    limit: float = float("inf")
    missing: str | None = None


@dataclass(frozen=True)
class Stage:
    """Tasks that belong together.

    Attributes:
        limit: seconds that the stage may take.
        least: seconds that earlier stages must leave to it.
        together: whether its tasks run at the same time.
    """

    name: str
    tasks: Sequence[Task]
    limit: float
    least: float
    together: bool = False


@dataclass
class Outcome:
    """The outcome of a task."""

    stage: str
    task: str
    status: str
    reason: str
    seconds: float
    log: str = ""


def _listen() -> None:
    """Restores SIGINT in a child: a shell that runs this in the background ignores it, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class _Process:
    """A running task; its output goes to a file."""

    def __init__(self, task: Task, log: Path, limit: float) -> None:
        self.task, self.log = task, log
        self.limit = min(limit, task.limit)
        environment = {**os.environ, **{k: v for k, v in task.environment.items() if v is not None}}
        for name in [name for name, value in task.environment.items() if value is None]:
            environment.pop(name, None)
        self.began = time.monotonic()
        self._interrupted: float | None = None
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [part.replace("{seconds}", f"{self.limit:.0f}") for part in task.command],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
                preexec_fn=_listen,
            )

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def poll(self) -> int | None:
        """The exit status, or None while the process runs; enforces the time limit."""
        status = self._process.poll()
        now = time.monotonic()
        if status is None and self._interrupted is None and now - self.began > self.limit:
            self._interrupted = now
            # Only the process itself: its workers' output would follow its own.
            self._process.send_signal(signal.SIGINT)
        elif status is None and self._interrupted is not None and now - self._interrupted > GRACE:
            self.kill()
            status = self._process.wait()
        return status

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def outcome(self, stage: str, status: int) -> Outcome:
        self._signal(signal.SIGKILL)  # children that it left running
        log = self.log.read_bytes()[-LOG_BYTES:].decode(errors="replace")
        seconds = time.monotonic() - self.began
        if self._interrupted is not None:
            verdict = FAILED, f"cut off after its {self.limit:.0f} s"
        else:
            verdict = self.task.judge(status, log)
        return Outcome(stage, self.task.name, *verdict, seconds, log)


def run_stage(stage: Stage, limit: float, folder: Path) -> list[Outcome]:
    """Runs the tasks of a stage, with logs in `folder`; a task that cannot start has failed."""
    found: dict[str, Outcome] = {}
    waiting = list(stage.tasks)
    running: list[_Process] = []
    ends = time.monotonic() + limit
    try:
        while waiting or running:
            while waiting and (stage.together or not running):
                task = waiting.pop(0)
                left = ends - time.monotonic()
                if task.missing is not None:
                    found[task.name] = Outcome(stage.name, task.name, SKIPPED, task.missing, 0.0)
                elif left < 1.0:
                    found[task.name] = Outcome(stage.name, task.name, FAILED, "no time was left for it", 0.0)
                else:
                    try:
                        running.append(_Process(task, folder / f"{stage.name}-{task.name}.log", left))
                    except OSError as error:
                        found[task.name] = Outcome(stage.name, task.name, FAILED, str(error), 0.0)
            for process in list(running):
                status = process.poll()
                if status is not None:
                    running.remove(process)
                    found[process.task.name] = process.outcome(stage.name, status)
            time.sleep(0.05 if running else 0.0)
    finally:
        for process in running:
            process.kill()
    return [found[task.name] for task in stage.tasks]


def run(
    stages: Sequence[Stage],
    total: float,
    folder: Path,
    before: Callable[[Stage, float], None] = lambda stage, limit: None,
    after: Callable[[Stage, list[Outcome]], None] = lambda stage, outcomes: None,
) -> list[Outcome]:
    """Runs all stages within `total` seconds; each stage leaves the later ones the time that they need at least."""
    ends = time.monotonic() + total
    outcomes: list[Outcome] = []
    for index, stage in enumerate(stages):
        reserved = sum(later.least for later in stages[index + 1 :])
        limit = max(0.0, min(stage.limit, ends - time.monotonic() - reserved))
        before(stage, limit)
        done = run_stage(stage, limit, folder)
        after(stage, done)
        outcomes += done
    return outcomes
