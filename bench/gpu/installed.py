"""``python -m bench.gpu.installed`` lists the available backends, and fails if one is missing that should run here."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import torch


def due(backend: str) -> bool:
    """Whether a backend should run here.

    With a GPU, `cuda` should where its library was built or nvcc is there to build it, and `triton` where Triton is
    installed. All other backends should run everywhere.
    """
    if backend not in ("cuda", "triton"):
        return True
    if not torch.cuda.is_available():
        return False
    if backend == "triton":
        return importlib.util.find_spec("triton") is not None
    import radam_fused

    built = [path for folder in radam_fused.__path__ for path in Path(folder).glob("_C_cuda*")]
    return bool(built) or shutil.which("nvcc") is not None


def main() -> int:
    from radam_fused import available_backends

    missing = False
    for backend, reason in available_backends().items():
        gap = reason is not None and due(backend)
        missing = missing or gap
        print(f"{'MISSING ' if gap else ''}{backend}: {reason or 'runs here'}")
    return int(missing)


if __name__ == "__main__":
    sys.exit(main())
