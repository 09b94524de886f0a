"""Counts the kernels and copies that a call launches on the GPU, with torch.profiler.

The counts come from the exported trace, whose categories separate kernels from copies and from the profiler's own
ranges; torch's own summaries mix them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass
class Trace:
    """The work of the GPU.

    Attributes:
        kernels: names, in the order of their start times.
        copies: "Memcpy HtoD (Pinned -> Device)" and the like.
        memsets: their number.
        streams: the streams on which the kernels ran.
        busy: the sum of all durations, in seconds.
    """

    kernels: list[str] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    memsets: int = 0
    streams: set[int] = field(default_factory=set)
    busy: float = 0.0


def read(events: list[dict[str, Any]]) -> Trace:
    """Reads a Chrome trace's events."""
    trace = Trace()
    on_gpu = [event for event in events if event.get("cat") in CATEGORIES and event.get("ph", "X") == "X"]
    for event in sorted(on_gpu, key=lambda event: event["ts"]):
        trace.busy += 1e-6 * event.get("dur", 0.0)
        if event["cat"] == "kernel":
            trace.kernels.append(event["name"])
            trace.streams.add(event.get("args", {}).get("stream", -1))
        elif event["cat"] == "gpu_memcpy":
            trace.copies.append(event["name"])
        else:
            trace.memsets += 1
    return trace


def record(call: Callable[[], object]) -> Trace:
    """Runs `call` under the profiler; without a GPU the trace is empty."""
    if not torch.cuda.is_available():
        call()
        return Trace()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        call()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return read(json.loads(path.read_text(errors="replace"))["traceEvents"])
