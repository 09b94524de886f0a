"""Describes the GPU and the software around it, without host name or path.

``python -m bench.gpu.gpu_info`` prints the description as JSON, for a process that must not use the GPU itself.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import torch

from bench.harness import machine

CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "temperature.gpu", "power.draw", "power.limit")
"""MHz, degrees Celsius and watts."""


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def query(*fields: str) -> dict[str, str]:
    """What nvidia-smi reports of the GPU that torch calls 0; empty where there is no nvidia-smi."""
    if not torch.cuda.is_available():
        return {}
    base = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    uuid = getattr(torch.cuda.get_device_properties(0), "uuid", None)
    # With CUDA_VISIBLE_DEVICES, torch's first GPU need not be nvidia-smi's.
    said = (_output(*base, f"--id=GPU-{uuid}") if uuid else None) or _output(*base)
    values = said.splitlines()[0].split(", ") if said else []
    return dict(zip(fields, values, strict=True)) if len(values) == len(fields) else {}


def nvcc_version() -> str | None:
    said = _output("nvcc", "--version") if shutil.which("nvcc") else None
    found = re.search(r"release [\d.]+, V([\d.]+)", said or "")
    return found[1] if found else None


def gpu() -> dict[str, Any]:
    """The GPU as torch and nvidia-smi describe it; without a GPU only the name "cpu"."""
    if not torch.cuda.is_available():
        return {"name": "cpu", "driver": None, "clocks": {}}
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "count": torch.cuda.device_count(),
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_mb": round(properties.L2_cache_size / 1e6, 1),
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": query("driver_version").get("driver_version"),
        "clocks": query(*CLOCKS),
    }


def versions() -> dict[str, str | None]:
    """Those of `bench.harness.machine`, and what a GPU needs."""
    return {
        **machine.versions(),
        "triton": machine.version("triton"),
        "cuda": torch.version.cuda,
        "nvcc": nvcc_version(),
    }


if __name__ == "__main__":
    print(json.dumps({"gpu": gpu(), "versions": versions(), "cores": machine.machine()["cores"]}))
