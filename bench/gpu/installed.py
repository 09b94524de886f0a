"""Which backends this installation can run, and which it should: ``python -m bench.gpu.installed`` fails over a gap."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import torch


def due(backend: str) -> bool:
    """Whether a backend has no excuse for not running here.

    `cuda` has none where its library was built or nvcc could have built it, `triton` none where Triton is installed,
    each on a machine with a GPU; the others never have.
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
