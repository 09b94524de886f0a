"""Sends a signal whose handler raises at one line of the package, for tests of what an interrupt leaves behind."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import radam_fused
from tests.support.sampling import WHOLE

PACKAGE = str(Path(radam_fused.__file__).parent)


class Interrupted(BaseException):
    """What the handler raises, as KeyboardInterrupt no Exception."""


def some_of(lines: int, most: int) -> range:
    """The lines at which a test sends its signal: about ``most``, evenly spread, or all."""
    return range(1, lines + 1, 1 if WHOLE else max(1, lines // most))


@contextmanager
def signal_at(line: int) -> Iterator[list[int]]:
    """Sends a signal before the package's `line`-th line is run; yields the count of lines."""
    lines = [0]

    def handler(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            lines[0] += 1
            if lines[0] == line:
                signal.raise_signal(signal.SIGUSR1)
        return trace

    before, tracer = signal.signal(signal.SIGUSR1, handler), sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(tracer)  # such as coverage.py's
        signal.signal(signal.SIGUSR1, before)
        # No Python program can shut a handler out of the line of a `finally` that turns gradients on again.
        torch.set_grad_enabled(True)
