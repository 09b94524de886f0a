"""RAdam for PyTorch as one fused pass: ``from radam_fused import FusedRAdam``."""

from importlib.metadata import version as _version

from . import rectification, schedules
from .backends import available_backends
from .gradient_release import StepInBackward, step_in_backward
from .optimizer import FusedRAdam
from .planner import plan
from .step.profiling import RectificationState

__version__ = _version("radam_fused")
__all__ = [
    "FusedRAdam",
    "RectificationState",
    "StepInBackward",
    "__version__",
    "available_backends",
    "plan",
    "rectification",
    "schedules",
    "step_in_backward",
]


def __dir__() -> list[str]:
    return __all__
