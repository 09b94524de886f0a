"""How the GPU suite measures: one candidate at a time on an otherwise idle GPU, with a copy before and after each case.

Each candidate first takes `FIRST_STEPS` steps, so that RAdam is rectified (from step 6 on) and everything is compiled.
Then three times are measured separately (`bench.gpu.clock`): how long a step keeps the GPU busy, how long it keeps the
host busy, and how long it takes in a loop, where host and GPU overlap. The timed tensors are then checked
(`bench.gpu.check`). Launches are counted in a separate pass after all timing, because a profiler may slow down what
runs after it. Candidates that compile something first come last of all.

The copy is the bandwidth roofline: it copies half of a step's bytes from one array to another, so it moves as many
bytes as a step of FusedRAdam, and is timed in the same way. Times are in seconds.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.gpu import check, clock, traces
from bench.gpu.clock import Clock
from bench.harness.measure import no_collection, quartiles, why_skipped
from bench.harness.plan import Plan
from bench.optimizers import candidates
from bench.optimizers.candidates import FIRST_STEPS, Candidate, Runner
from bench.workloads.cases import DTYPES, Case

PLAN = Plan(budget=0.3, most=50)
"""Of each of the three times of a candidate and case."""


def summary(samples: Sequence[float], unit: float) -> dict[str, float] | None:
    """Quartiles of times, times `unit`, and their number; None without samples."""
    return {**quartiles(samples, unit, digits=5), "samples": len(samples)} if samples else None


def release() -> None:
    """Returns unused memory to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def copy_seconds(moved: int, on: Clock, plan: Plan) -> list[float]:
    """Times of a device-to-device copy that moves so many bytes, reads and writes together."""
    source = torch.empty(max(moved // 8, 1), dtype=torch.float32, device=on.device).normal_()
    target = torch.zeros_like(source)

    def copy() -> None:
        target.copy_(source)

    copy()
    with no_collection():
        estimate = statistics.median(clock.looped(on, copy, 3, 1))
        return on.busy(copy, plan.count(estimate), 1e-4)


def start(
    candidate: Candidate, case: Case, dtype: torch.dtype, on: Clock, plan: Plan, steps: int = FIRST_STEPS
) -> Runner:
    """A candidate on the GPU that has taken its first steps, at most until `plan.ends` if they compile something.

    Raises:
        Skipped, TimeUp: as `bench.optimizers.candidates.start`.
    """
    return candidates.start(
        candidate,
        case,
        case.values(0.02, plan.seed, dtype, on.device),
        case.values(0.01, plan.seed + 1, dtype, on.device),
        steps,
        limit=plan.ends - time.monotonic(),
        finish=on.synchronize,
    )


def measure(candidate: Candidate, case: Case, dtype_name: str, on: Clock, plan: Plan) -> dict[str, Any]:
    """One row of the results, without the counts of `count`.

    Raises:
        Skipped, TimeUp: as `start`.
    """
    dtype = DTYPES[dtype_name]
    runner = start(candidate, case, dtype, on, plan)
    with no_collection():
        once = statistics.median(clock.looped(on, runner.step, 1, 3))
        host = clock.host(on, runner.step, plan.count(once))
        busy = on.busy(runner.step, plan.count(once), statistics.median(host))
        loops = max(1, min(100, math.ceil(plan.budget / 5 / once)))
        looped = clock.looped(on, runner.step, loops, 5)
    row = {
        "candidate": candidate.name,
        "label": candidate.label,
        "ours": candidate.ours,
        "backend": candidate.backend,
        "flatten": candidate.flatten,
        "kind": candidate.kind,
        "case": case.name,
        "dtype": dtype_name,
        "bytes": candidate.step_bytes(case, dtype),
        "gpu_ms": summary(busy, 1e3),
        "gpu_ms_from": "events" if busy else None,
        "host_us": summary(host, 1e6),
        "loop_ms": summary(looped, 1e3),
        "check": _check(candidate, runner, dtype_name),
    }
    del runner
    release()
    return row


def _check(candidate: Candidate, runner: Runner, dtype_name: str) -> dict[str, Any]:
    """The result of `bench.gpu.check` and whether it is right; an Adam must only move its parameters."""
    if candidate.kind != "radam" or not (candidate.ours or dtype_name == "fp32"):
        before = runner.params[0].detach().clone()
        runner.step()
        after = runner.params[0].detach()
        return {"right": None, "moves": bool((before != after).any()) and bool(after.isfinite().all())}
    try:
        found = check.against_reference(runner)
    except (KeyError, torch.OutOfMemoryError) as error:  # a baseline's state has other names; the GPU is small
        return {"right": None, "reason": f"not compared: {type(error).__name__}: {error}".splitlines()[0]}
    agrees = found.same_bits if candidate.ours else found.difference <= check.TOLERANCE
    return {
        "right": agrees and found.moved > 0.1,
        "same_bits": found.same_bits,
        "difference": float(f"{found.difference:.3g}"),
        "moved": round(found.moved, 4),
        "step": found.step,
    }


def count(candidate: Candidate, case: Case, dtype_name: str, on: Clock, plan: Plan) -> dict[str, Any]:
    """How many kernels and copies one step launches; raises as `start`."""
    runner = start(candidate, case, DTYPES[dtype_name], on, plan, steps=2)
    trace = traces.record(runner.step)
    del runner
    release()
    return {
        "launches": len(trace.kernels),
        "memcpys": len(trace.copies),
        "memsets": trace.memsets,
        "profiled_ms": float(f"{1e3 * trace.busy:.5g}"),
    }


def measure_copy(case: Case, dtype_name: str, on: Clock, plan: Plan) -> dict[str, Any]:
    """The copy that moves as many bytes as one step of FusedRAdam."""
    moved = case.step_bytes(DTYPES[dtype_name])
    ms = summary(copy_seconds(moved, on, plan), 1e3)
    release()
    return {"case": case.name, "dtype": dtype_name, "bytes": moved, "ms": ms}


class Attempts:
    """Tries one candidate after another until the time is up, and notes which ones failed and why."""

    def __init__(self, missing: list[dict[str, Any]], ends: float, out: dict[str, str] | None = None) -> None:
        """Appends failures to `missing`; `out` has the backends that are not tried, with the reason."""
        self.missing = missing
        self.ends = ends
        self.out = out or {}

    def attempt(
        self,
        call: Callable[[Candidate, Case, str], dict[str, Any]],
        candidate: Candidate,
        case: Case,
        dtype: str,
    ) -> dict[str, Any] | None:
        """The result of `call`, or None if it failed; only an interrupt ends the run."""
        if candidate.backend in self.out:
            reason = self.out[candidate.backend]
        elif time.monotonic() > self.ends:
            reason = "out of time"
        else:
            try:
                return call(candidate, case, dtype)
            except Exception as error:  # a candidate's failure is a line in the report, not the end of the run
                reason = why_skipped(error)
        release()
        self.skip(candidate, case, dtype, reason)
        return None

    def skip(self, candidate: Candidate, case: Case, dtype: str, reason: str) -> None:
        """Notes why there is no result."""
        entry = {"candidate": candidate.name, "label": candidate.label, "backend": candidate.backend}
        self.missing.append({**entry, "case": case.name, "dtype": dtype, "reason": reason})
