"""The backends, which compute the operators step, grad_norm and scalars (`radam_fused.backends.ops`)."""

from .registry import NAMES, BackendName, available_backends, backend_for, check_host, check_name, preferred

__all__ = ["NAMES", "BackendName", "available_backends", "backend_for", "check_host", "check_name", "preferred"]
