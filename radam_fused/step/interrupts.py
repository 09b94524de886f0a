"""Handlers of signals wait while a step that is not one call of C writes and counts.

Python runs a signal's handler between any two operations of the main thread. A KeyboardInterrupt that is raised there
after a kernel has moved the parameters and before the step is counted would leave the one without the other.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what `signal` wraps: without its enums, in a fifth of the time
import signal
import threading
from itertools import compress
from types import FrameType, TracebackType
from typing import Any

DEFERRED = [
    int(getattr(signal, name))
    for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
]
"""Signals for which programs install handlers that raise."""


class Deferred:
    """A context manager at whose end the handlers of signals that have come meanwhile are run, in their order.

    Handlers only ever run in the main thread, so in any other it does nothing.
    """

    _handlers: list[tuple[int, Any]]
    _arrived: list[tuple[int, FrameType | None]]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._arrived.append((number, frame))

    def __enter__(self) -> Deferred:
        self._handlers, self._arrived = [], []
        if threading.get_ident() != threading.main_thread().ident:
            return self
        # SIG_DFL and SIG_IGN are 0 and 1 here; most often only SIGINT has a handler.
        found = [*map(_signal.getsignal, DEFERRED)]
        try:
            for number, handler in compress(zip(DEFERRED, found, strict=True), map(callable, found)):
                self._handlers.append((number, handler))
                _signal.signal(number, self._note)
        except BaseException:  # out of a handler that still runs
            self._restore()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handlers:
            self._restore()
        for number, frame in self._arrived:
            handler = _signal.getsignal(number)
            if callable(handler):
                handler(number, frame)

    def _restore(self) -> None:
        try:
            while self._handlers:
                _signal.signal(*self._handlers[-1])
                self._handlers.pop()
        finally:  # a handler that is back already may raise here
            for number, handler in self._handlers:
                _signal.signal(number, handler)
