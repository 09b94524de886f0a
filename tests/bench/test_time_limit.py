"""Time limits of calls. The alarm is raised by hand: on a busy machine, one of milliseconds could ring at any time."""

from __future__ import annotations

import signal

import pytest

from bench.optimizers.time_limit import TimeUp, time_limit


def test_the_alarm_ends_the_call() -> None:
    with pytest.raises(TimeUp, match="longer than 3600 s"), time_limit(3600.0):
        signal.raise_signal(signal.SIGALRM)


@pytest.mark.parametrize("seconds", [3600.0, None])
def test_no_alarm_is_left_behind(seconds: float | None) -> None:
    handler = signal.getsignal(signal.SIGALRM)
    with time_limit(seconds):
        left, _ = signal.getitimer(signal.ITIMER_REAL)
        assert 0.0 < left <= 3600.0 if seconds else left == 0.0
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is handler
