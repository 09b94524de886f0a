"""The ``cpu`` backend: the C++ extension ``radam_fused._C``, vectorised and threaded (csrc/cpu)."""

from __future__ import annotations

import importlib

_failure: str | None = None


def load() -> None:
    """Loads the extension, whose static initialisers register ``radam_fused::step_native``; notes why it cannot."""
    global _failure
    try:
        importlib.import_module("radam_fused._C")
    except ImportError as error:
        _failure = f"the C++ extension is not there: {error}; reinstall radam_fused where there is a C++ compiler"


def unavailable() -> str | None:
    """Why this backend cannot run here, or None if it can."""
    return _failure
