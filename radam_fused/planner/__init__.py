"""What a model's weights, gradients and optimizer state take with each combination of options."""

from .choices import Choice, MemoryPlan, plan

__all__ = ["Choice", "MemoryPlan", "plan"]
