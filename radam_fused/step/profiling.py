"""What an optimizer reports: its place in RAdam's schedule, and the spans of a step in a profile."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from ..rectification import rectification, rho
from ..tensor_kinds import is_fake

P = ParamSpec("P")
R = TypeVar("R")


class RectificationState(NamedTuple):
    """Where the parameters of one group that have taken ``t`` steps stand (algorithm 2 of the paper)."""

    group: int
    """Index of the parameter group."""
    parameters: int
    """How many of its parameters have taken ``t`` steps."""
    t: int
    rho_t: float
    """Length of the approximated SMA at the last step."""
    r_t: float | None
    """The rectification term of that step; None where it was not rectified."""


def rectification_state(groups: list[dict[str, Any]], state: dict[Tensor, Any]) -> list[RectificationState]:
    """A line for each group and step count, by falling count of parameters; those without a step are left out.

    Reads the step counts, so it waits for the device where they are kept there (``capturable``, GradScaler).
    """
    lines = []
    for index, group in enumerate(groups):
        steps = [state[p]["step"] for p in group["params"] if state.get(p)]
        counts: dict[int, int] = {}
        if any(map(is_fake, steps)):  # they have no values
            continue
        for count in torch.stack([step.float() for step in steps]).tolist() if steps else ():
            counts[int(count)] = counts.get(int(count), 0) + 1
        beta2 = group["betas"][1]
        lines += [
            RectificationState(
                group=index,
                parameters=parameters,
                t=t,
                rho_t=rho(t, beta2),
                r_t=rectification(t, beta2, group["rectification"], group["rho_threshold"]),
            )
            for t, parameters in sorted(counts.items(), key=lambda item: -item[1])
            if t > 0
        ]
    return lines


def observable(traced: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates an optimizer's ``step``: torch.optim's hooks and a range in a profile, where there are any.

    torch wraps every ``step`` so when an optimizer is made. To look for hooks and to open a range that no profiler
    records takes 12 us of the host's time, more than all else that a step of a small model does.

    Args:
        traced: the method that torch.compile traces in place of ``step``, without hooks.
    """

    def decorate(step: Callable[..., Any]) -> Callable[..., Any]:
        watched = Optimizer.profile_hook_step(step)

        @functools.wraps(step)
        def either(optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return traced(optimizer, *args, **kwargs)
            if (
                optimizer._optimizer_step_pre_hooks
                or optimizer._optimizer_step_post_hooks
                or _global_optimizer_pre_hooks
                or _global_optimizer_post_hooks
                or _profiler_enabled()
            ):
                return watched(optimizer, *args, **kwargs)
            return step(optimizer, *args, **kwargs)

        either.hooked = True  # type: ignore[attr-defined]  # which keeps torch from wrapping it
        return either

    return decorate


def profiled(name: str, call: Callable[P, R]) -> Callable[P, R]:
    """The same call, as a named range in a profile while one is taken (NVTX under `torch.autograd.profiler.emit_nvtx`).

    A context manager that does nothing would make three calls of Python functions, and this makes one.
    """
    return torch.autograd.profiler.record_function(f"radam_fused.{name}")(call) if _profiler_enabled() else call
