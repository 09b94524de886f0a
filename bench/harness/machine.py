"""Describes the machine and the software of a run, without host name or path; waits for a quiet machine."""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from bench import keys
from bench.optimizers.bandwidth_roofline import compiler_version

ROOT = Path(__file__).parents[2]


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except OSError:
        return None


def _first_value(path: str, key: str) -> str | None:
    """From a file of ``key : value`` lines as in /proc, the value of the first line with that key."""
    for line in (_read(path) or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


def caches() -> dict[str, str]:
    """The first core's caches, as in ``{"L1d": "48K", ...}``; empty where the system does not report them."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_read(f"{folder}/{name}") for name in ("level", "type", "size"))
        if level and kind and size:
            suffix = {"Data": "d", "Instruction": "i"}.get(kind.strip(), "")
            found[f"L{level.strip()}{suffix}"] = size.strip()
    return found


def _gib(key: str) -> float | None:
    value = _first_value("/proc/meminfo", key)
    return int(value.split()[0]) / 2**20 if value else None


def available_gib() -> float | None:
    """Memory that is available without swapping; None where the system does not report it."""
    return _gib("MemAvailable")


def free_garbage() -> None:
    """Returns all unused memory to the system.

    glibc keeps free blocks between blocks in use. After a memory group with many tensors that is most of its memory:
    the next group would find gigabytes less and leave out the candidates that no longer fit.
    """
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def machine() -> dict[str, object]:
    total = _gib("MemTotal")
    pages = _read("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "cpu": _first_value("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "caches": caches(),
        "vector": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": round(total, 1) if total else None,
        "transparent_huge_pages": pages.split("[")[1].split("]")[0] if pages and "[" in pages else None,
    }


PACKAGES = (
    "apex",
    "bitsandbytes",
    "deepspeed",
    "flashoptim",
    "pytorch_optimizer",
    "schedulefree",
    "torch-optimi",
    "torchao",
    "transformer_engine",
    "triton",
)


def version(package: str) -> str | None:
    """A package's version; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, Any]:
    """Versions of everything that a benchmark uses; None for a package that is not installed."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "radam_fused": version("radam_fused"),
        "pytest-benchmark": version("pytest-benchmark"),
        "compiler": compiler_version(),
        keys.PACKAGES: {name: version(name) for name in PACKAGES},
    }


def commit() -> dict[str, object]:
    """The checkout's commit, and whether any file but the benchmarks' own results differs from it."""

    def git(*arguments: str) -> str | None:
        try:
            return subprocess.run(
                ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    changed = git("status", "--porcelain", "--", ".", ":!bench/results")
    return {"hash": git("rev-parse", "HEAD"), "modified": None if changed is None else bool(changed)}


def wait_for_quiet(limit: float, calm: float = 0.1, glance: float = 0.05) -> float:
    """Sleeps until other processes take less than `calm` of the CPUs during `glance` seconds.

    Returns the seconds slept, at most `limit`. Returns immediately for 0, and where `Load` cannot see other
    processes.
    """
    began = time.monotonic()
    while (slept := time.monotonic() - began) < limit:
        load = Load()
        time.sleep(glance)
        others = load.others()
        if others is None or others < calm:
            return time.monotonic() - began
    return slept


class Load:
    """Measures the CPU time of other processes from its construction to the call of `others`; Linux only."""

    def __init__(self) -> None:
        self._began = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """CPU seconds: of the whole machine, of them not idle, and of this process."""
        stat = _read("/proc/stat")
        if stat is None:
            return None
        names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
        ticks = dict(zip(names, map(int, stat.split()[1:9]), strict=True))
        total = sum(ticks.values())
        a_second = os.sysconf("SC_CLK_TCK")
        own = os.times()
        return total / a_second, (total - ticks["idle"] - ticks["iowait"]) / a_second, own.user + own.system

    def others(self) -> float | None:
        """Their part of the machine's CPU time, 0 to 1; time that the hypervisor stole counts as theirs."""
        ended = self._now()
        if self._began is None or ended is None:
            return None
        total, busy, own = (after - before for before, after in zip(self._began, ended, strict=True))
        return min(1.0, max(0.0, (busy - own) / total)) if total > 0 else 0.0
