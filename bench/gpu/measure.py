"""The method: one contestant at a time on a GPU of its own, with the yardstick, a copy, before and after each case.

Everybody takes `WARMUP` steps first, so that RAdam is rectified (from step 6 on) and everything lazy has been built and
compiled. Then three times are taken apart (`bench.gpu.clock`): what a step keeps the GPU busy, what it keeps the host,
and what it takes in a loop, which is the longer of the two where they overlap. The timed tensors are then checked
(`bench.gpu.check`). What a step starts on the GPU is counted in a pass of its own, after all the timing, as a profiler
may slow down what comes after it; contestants that compile something first come last of all.

The yardstick copies half of a pass's bytes from one array to another, timed in the same way, so it moves what a pass of
FusedRAdam moves. Times are in seconds.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from bench.gpu import check, clock, traces
from bench.gpu.candidates import Contestant, Runner
from bench.gpu.cases import DTYPES, pass_bytes, values
from bench.gpu.clock import Clock
from bench.optimizers.baselines import Absent
from bench.optimizers.time_limit import TimeUp, time_limit
from bench.workloads.cases import Case

WARMUP = 8
SEED = 0


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes:
        seconds: for each of the three times, of one contestant and case.
        least, most: samples of a time.
        ends: when the run has to be over, by time.monotonic(): what compiles is stopped then.
    """

    seconds: float = 0.3
    least: int = 7
    most: int = 50
    ends: float = math.inf

    def count(self, estimate: float) -> int:
        return max(self.least, min(self.most, math.ceil(self.seconds / max(estimate, 1e-9))))


def quartiles(samples: Sequence[float], unit: float = 1.0) -> dict[str, float] | None:
    """Median and quartiles, times `unit`, to five significant digits; None of no samples."""
    if not samples:
        return None
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else 3 * [samples[0]]
    return {name: float(f"{unit * q:.5g}") for name, q in (("q1", q1), ("median", median), ("q3", q3))} | {
        "samples": len(samples)
    }


def release() -> None:
    """Gives the memory of what nobody holds any more back to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def no_collection() -> Iterator[None]:
    """Garbage is collected before and not during."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def copy_seconds(moved: int, on: Clock, plan: Plan) -> list[float]:
    """Times of a device-to-device copy that moves so many bytes, reading and writing together."""
    source = torch.empty(max(moved // 8, 1), dtype=torch.float32, device=on.device).normal_()
    target = torch.zeros_like(source)

    def copy() -> None:
        target.copy_(source)

    copy()
    with no_collection():
        estimate = statistics.median(clock.looped(on, copy, 3, 1))
        return on.busy(copy, plan.count(estimate), 1e-4)


def start(
    contestant: Contestant, case: Case, dtype: torch.dtype, on: Clock, steps: int = WARMUP, ends: float = math.inf
) -> Runner:
    """A contestant that has taken its first steps; one with a limit for them has at most until `ends`.

    Raises:
        Absent: it cannot run here.
        TimeUp: its first steps took longer than they may.
    """
    params = values(case, dtype, on.device, 0.02, SEED)
    grads = values(case, dtype, on.device, 0.01, SEED + 1)
    limit = contestant.setup and min(contestant.setup, ends - time.monotonic())
    with time_limit(limit):
        runner = contestant.build(case, params, grads)
        del params, grads
        for _ in range(steps):
            runner.step()
        on.synchronize()
    return runner


def measure(contestant: Contestant, case: Case, dtype_name: str, on: Clock, plan: Plan) -> dict[str, Any]:
    """One row of the results, without the counts of `count`.

    Raises:
        Absent, TimeUp: as `start`.
    """
    dtype = DTYPES[dtype_name]
    runner = start(contestant, case, dtype, on, ends=plan.ends)
    with no_collection():
        once = statistics.median(clock.looped(on, runner.step, 1, 3))
        host = clock.host(on, runner.step, plan.count(once))
        busy = on.busy(runner.step, plan.count(once), statistics.median(host))
        loops = max(1, min(100, math.ceil(plan.seconds / 5 / once)))
        looped = clock.looped(on, runner.step, loops, 5)
    row = {
        "contestant": contestant.name,
        "label": contestant.label,
        "ours": contestant.ours,
        "backend": contestant.backend,
        "flatten": contestant.flatten,
        "kind": contestant.kind,
        "case": case.name,
        "dtype": dtype_name,
        "bytes": contestant.pass_bytes(case, dtype),
        "gpu_ms": quartiles(busy, 1e3),
        "gpu_ms_from": "events" if busy else None,
        "host_us": quartiles(host, 1e6),
        "loop_ms": quartiles(looped, 1e3),
        "check": _check(contestant, runner, dtype_name),
    }
    del runner
    release()
    return row


def _check(contestant: Contestant, runner: Runner, dtype_name: str) -> dict[str, Any]:
    """What `bench.gpu.check` finds, and whether that is as it must be; for Adams only that they have moved."""
    if contestant.kind != "radam" or not (contestant.ours or dtype_name == "fp32"):
        before = runner.params[0].detach().clone()
        runner.step()
        after = runner.params[0].detach()
        return {"right": None, "moves": bool((before != after).any()) and bool(after.isfinite().all())}
    try:
        found = check.against_reference(runner)
    except (KeyError, torch.OutOfMemoryError) as error:  # a peer's state under other names; a small GPU
        return {"right": None, "reason": f"not compared: {type(error).__name__}: {error}".splitlines()[0]}
    agrees = found.same_bits if contestant.ours else found.difference <= check.TOLERANCE
    return {
        "right": agrees and found.moved > 0.1,
        "same_bits": found.same_bits,
        "difference": float(f"{found.difference:.3g}"),
        "moved": round(found.moved, 4),
        "step": found.step,
    }


def count(contestant: Contestant, case: Case, dtype_name: str, on: Clock, plan: Plan) -> dict[str, Any]:
    """What one step starts on the GPU; raises as `start`."""
    runner = start(contestant, case, DTYPES[dtype_name], on, steps=2, ends=plan.ends)
    trace = traces.record(runner.step)
    del runner
    release()
    return {
        "launches": len(trace.kernels),
        "memcpys": len(trace.copies),
        "memsets": trace.memsets,
        "profiled_ms": float(f"{1e3 * trace.busy:.5g}"),
    }


def yardstick(case: Case, dtype_name: str, on: Clock, plan: Plan) -> dict[str, Any]:
    """The copy that moves as many bytes as one pass of FusedRAdam."""
    moved = pass_bytes(case, DTYPES[dtype_name], torch.float32)
    ms = quartiles(copy_seconds(moved, on, plan), 1e3)
    release()
    return {"case": case.name, "dtype": dtype_name, "bytes": moved, "ms": ms}


class Attempts:
    """Tries one contestant after another until the time is up, and notes what could not be done and why."""

    def __init__(self, missing: list[dict[str, Any]], ends: float, out: dict[str, str] | None = None) -> None:
        """What fails goes to `missing`; `out` names backends that are not even tried, with the reason."""
        self.missing = missing
        self.ends = ends
        self.out = out or {}

    def attempt(
        self,
        call: Callable[[Contestant, Case, str], dict[str, Any]],
        contestant: Contestant,
        case: Case,
        dtype: str,
    ) -> dict[str, Any] | None:
        """What `call` returns, or None where that did not work out; only an interrupt ends the run."""
        if contestant.backend in self.out:
            reason = self.out[contestant.backend]
        elif time.monotonic() > self.ends:
            reason = "out of time"
        else:
            try:
                return call(contestant, case, dtype)
            except (Absent, TimeUp) as error:
                reason = str(error)
            except torch.OutOfMemoryError:
                reason = "out of GPU memory"
            except Exception as error:  # one contestant's failure is a line in the report, not the end of the run
                reason = f"failed: {type(error).__name__}: {error}"[:400]
        release()
        entry = {"contestant": contestant.name, "label": contestant.label, "backend": contestant.backend}
        self.missing.append({**entry, "case": case.name, "dtype": dtype, "reason": reason})
        return None
