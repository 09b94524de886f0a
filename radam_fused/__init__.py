"""RAdam for PyTorch as one fused pass: ``from radam_fused import FusedRAdam``."""

from importlib.metadata import version

from . import rectification, schedules
from .backends import available_backends
from .gradient_release import step_in_backward
from .optimizer import FusedRAdam
from .planner import plan

__version__ = version("radam_fused")
__all__ = ["FusedRAdam", "available_backends", "plan", "rectification", "schedules", "step_in_backward"]
