"""Stepping during backward: each parameter takes its step, and loses its gradient, as soon as that is complete.

The gradients of all parameters then never exist at once. A hook of torch's (``register_post_accumulate_grad_hook``)
launches the step of one parameter over its own bucket (state/per_param.py), at a cost that does not depend on how many
there are; `FusedRAdam.step` takes what is left and ends the iteration.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from .device import capturing
from .numerics.tensor_checks import group_names
from .optimizer import FusedRAdam
from .state.bucket import Bucket
from .state.per_param import SeparatePlacement
from .step.interrupts import Deferred
from .step.launch import Launch
from .step.run import run
from .step.scalars import DeviceScalars, DeviceTables, HostScalars, Scalars, check_capture, on_device


def step_in_backward(optimizer: FusedRAdam, accumulate: int = 1) -> StepInBackward:
    """Lets an optimizer step each parameter during the backward pass, and free its gradient, once that is complete.

    The loop stays as it is: ``optimizer.step()`` ends an iteration, steps the parameters that still hold a gradient,
    frees these as well, and runs its hooks. Parameters, state and step counts are bit for bit those of the same
    optimizer stepping after the backward pass::

        optimizer = FusedRAdam(model.parameters(), lr=1e-3)
        step_in_backward(optimizer)
        for batch in batches:
            model(batch).backward()  # no parameter has a gradient afterwards
            optimizer.step()
            scheduler.step()

    With ``accumulate=N`` a parameter is stepped in its Nth backward pass since the last ``optimizer.step()`` and keeps
    its gradient until then; ``optimizer.step()`` steps it earlier. Every gradient that arrives is stepped:
    ``optimizer.zero_grad()`` can drop only what is being accumulated.

    Copies and pickles of the optimizer step in the ordinary way. Turning this on or off copies the moments of
    parameters that have any. An error in a step comes out of ``backward``; every parameter has then either been
    stepped or not, and holds its gradient if not.

    Args:
        optimizer: without ``max_grad_norm``, ``flatten``, ``offload`` and ``differentiable``.
        accumulate: how many backward passes make an iteration.

    Returns:
        A handle: its ``remove()``, or its end as a context manager, gives the optimizer back its ordinary way.

    Raises:
        TypeError: an optimizer that is no `FusedRAdam`, or a number of passes that is no integer.
        ValueError: fewer than one pass, or an option of the optimizer that needs all gradients at once.
        RuntimeError: an optimizer that steps in backward already. Later, out of ``backward``: more than ``accumulate``
            passes since the last ``optimizer.step()``; out of ``optimizer.step()``: a call by `torch.amp.GradScaler`,
            or a gradient that something else has put in the place of the one that was stepped.
    """
    if not isinstance(optimizer, FusedRAdam):
        raise TypeError(f"optimizer is a {type(optimizer).__name__}: must be a FusedRAdam")
    if isinstance(accumulate, bool) or not isinstance(accumulate, int):
        raise TypeError(f"accumulate = {accumulate!r}: must be an integer, the backward passes of an iteration")
    if accumulate < 1:
        raise ValueError(f"accumulate = {accumulate}: must be at least 1")
    if optimizer._in_backward is not None:
        raise RuntimeError("this optimizer steps in backward already: call remove() of the handle that it gave first")
    _check_options(optimizer)
    before = optimizer._placement
    hooks = Hooks(optimizer, accumulate)
    optimizer._in_backward = hooks
    try:
        optimizer._placement = optimizer._place()
        hooks.follow(optimizer)
    except BaseException:
        hooks.remove()
        optimizer._in_backward = None
        optimizer._placement = before  # the next step lays it out anew, should the state have been shown elsewhere
        raise
    return StepInBackward(optimizer, hooks)


def _check_options(optimizer: FusedRAdam) -> None:
    if optimizer._max_grad_norm is not None:
        raise ValueError(
            f"max_grad_norm = {optimizer._max_grad_norm}: must be None to step in backward, as the norm is known only "
            "with all gradients. Clip each gradient as it comes, in a hook that is registered before, or step after "
            "the backward pass"
        )
    if optimizer._flatten:
        raise ValueError(
            "flatten = True: must be False to step in backward, as it keeps all gradients allocated. "
            "Choose one of the two"
        )
    if optimizer._offload:
        raise ValueError(
            "offload = True: must be False to step in backward, whose hooks would wait for the host. Choose one"
        )
    for index, group in enumerate(optimizer.param_groups):
        Hooks.check_group(group, index)


class StepInBackward:
    """What `step_in_backward` returns."""

    def __init__(self, optimizer: FusedRAdam, hooks: Hooks) -> None:
        self._optimizer = optimizer
        self._hooks = hooks

    def remove(self) -> None:
        """Lets the optimizer step in its ordinary way from now on; harmless where it does already.

        Gradients that are being accumulated stay, and parameters that this iteration has stepped have none.
        """
        if self._optimizer._in_backward is self._hooks:
            self._hooks.remove()
            self._optimizer._in_backward = None
            self._optimizer._placement = self._optimizer._place()

    def __enter__(self) -> StepInBackward:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


class Hooks:
    """The hooks on an optimizer's parameters, and what they remember of an iteration.

    They do not keep the optimizer alive, and go with it.
    """

    def __init__(self, optimizer: FusedRAdam, accumulate: int) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._accumulate = accumulate
        self._handles: dict[Tensor, RemovableHandle] = {}
        weakref.finalize(optimizer, _remove_all, self._handles).atexit = False
        self._followed: Any = None
        self._lazy = False
        """Whether a parameter is still to be made by a lazy module, and then to be followed."""
        self._passes: dict[Tensor, int] = {}
        """How many gradients each parameter has got in this iteration."""
        self._stepped: set[Tensor] = set()
        """Parameters that have taken the step of this iteration."""
        self._tables: dict[Any, DeviceTables] = {}
        """One for each stream, so that none waits for what another has uploaded; and the last one of each device."""
        self._lock = threading.Lock()  # each device runs its part of a backward pass in a thread of its own

    def follow(self, optimizer: FusedRAdam) -> None:
        """Puts hooks on the parameters of the optimizer's groups, and takes them from all others."""
        params = dict.fromkeys(p for group in optimizer.param_groups for p in group["params"])
        for p in [p for p in self._handles if p not in params]:
            self._handles.pop(p).remove()
        self._lazy = any(map(is_lazy, params))
        for p in params:
            if p not in self._handles and _may_get_gradients(p):
                self._handles[p] = self._register(p)
        self._followed = optimizer._placement.name if optimizer._placement is not None else None

    def _register(self, p: Tensor) -> RemovableHandle:
        frozen = not p.requires_grad
        if frozen:  # torch takes no hook then, but keeps one until the parameter is thawed
            p.requires_grad_(True)
        try:
            return p.register_post_accumulate_grad_hook(self._on_gradient)
        finally:
            if frozen:
                p.requires_grad_(False)

    def remove(self) -> None:
        """Takes all hooks away."""
        _remove_all(self._handles)

    @staticmethod
    def check_group(group: Mapping[str, Any], index: int) -> None:
        """Raises ValueError for a parameter group that cannot be stepped in backward."""
        if group["differentiable"]:
            raise ValueError(
                f"param_groups[{index}]: differentiable = True: must be False to step in backward, which frees what "
                "the step would be differentiated by. Step after the backward pass"
            )

    # In a backward pass.

    def _on_gradient(self, p: Tensor) -> None:
        """What torch calls when a parameter's gradient is complete."""
        optimizer = self._optimizer()
        if optimizer is None:
            return
        with self._lock, torch.no_grad():
            passes = self._passes.get(p, 0)
            if passes == self._accumulate:
                raise RuntimeError(self._too_many(optimizer, p))
            self._passes[p] = passes + 1
            if passes + 1 == self._accumulate:
                with Deferred():  # an interrupt must not leave a gradient that has been stepped
                    if self._step(optimizer, p):
                        p.grad = None
                        self._stepped.add(p)

    def _step(self, optimizer: FusedRAdam, p: Tensor) -> bool:
        """Steps one parameter; False where it is left to `FusedRAdam.step`."""
        placement = optimizer._placement
        assert isinstance(placement, SeparatePlacement)
        bucket = placement.bucket_of(p, optimizer.param_groups, optimizer.state)
        if bucket is None:
            return False
        launch = placement.collect(bucket)
        if launch is None:
            raise RuntimeError(
                f"{placement.names()[p]} has no gradient any more: a hook that ran before has taken it. "
                "One optimizer alone can step a parameter in backward"
            )
        run(placement, launch, self._scalars(optimizer, placement, bucket), zero_grads=False)
        return True

    def _scalars(self, optimizer: FusedRAdam, placement: SeparatePlacement, bucket: Bucket) -> Scalars:
        """`FusedRAdam._scalars` for one parameter."""
        check_capture([bucket], optimizer.param_groups)
        group = optimizer.param_groups[bucket.groups[0]]
        if not (bucket.counts.on_device or group["capturable"] or on_device(group["lr"])):
            return HostScalars(optimizer.param_groups)
        bucket.count_on_device()
        return DeviceScalars(optimizer.param_groups, self._tables_on(bucket.device), None, 0.0, None, None)

    def _tables_on(self, device: torch.device) -> DeviceTables:
        """The current stream's; for a graph's capture the last ones that were used, which need no upload."""
        if not (capturing(device) and device in self._tables):
            stream = torch.cuda.current_stream(device) if device.type == "cuda" else device
            self._tables[device] = self._tables.setdefault(stream, DeviceTables())
        return self._tables[device]

    def _too_many(self, optimizer: FusedRAdam, p: Tensor) -> str:
        name = _name(optimizer, p)
        return (
            f"{name} has got a gradient {self._accumulate + 1} times since the last optimizer.step(), with "
            f"accumulate = {self._accumulate}: call optimizer.step() at the end of every iteration, or give "
            "step_in_backward the number of backward passes that make one as accumulate. After an iteration that was "
            "given up call optimizer.zero_grad() and optimizer.step(). (Parts under torch.utils.checkpoint that share "
            "a parameter need use_reentrant=False.)"
        )

    # At the end of an iteration.

    def before_step(self, optimizer: FusedRAdam) -> None:
        """Raises where `FusedRAdam.step` cannot honour what it is asked for."""
        given = [vars(optimizer).pop(name, None) for name in ("grad_scale", "found_inf")]
        if any(value is not None for value in given):
            raise RuntimeError(
                "torch.amp.GradScaler and step_in_backward: the parameters have been stepped with scaled gradients, "
                "before it was known whether these are finite. Use bfloat16, which needs no scaling, or step after "
                "the backward pass"
            )
        for p in self._stepped:
            if p.grad is not None:
                raise RuntimeError(
                    f"{_name(optimizer, p)} has been stepped in backward, and holds another gradient since. Where "
                    "gradients are written after backward has made them, as DistributedDataParallel does with its "
                    "averages, step after the backward pass; optimizer.zero_grad() drops this one"
                )

    def after_step(self, optimizer: FusedRAdam, launches: list[Launch]) -> None:
        """Frees the gradients that `FusedRAdam.step` has stepped, and begins the next iteration."""
        for launch in launches:
            launch.bucket.params[0].grad = None
        self._passes.clear()
        self._stepped.clear()
        if optimizer._placement is None or optimizer._placement.name != self._followed or self._lazy:
            self.follow(optimizer)

    def zeroed(self) -> None:
        """After `FusedRAdam.zero_grad`: what was accumulated is gone, what was stepped was stepped."""
        self._passes = dict.fromkeys(self._stepped, self._accumulate)


def _may_get_gradients(p: Tensor) -> bool:
    """False where torch takes no hook, as there will be no gradient: integers, inference tensors, lazy parameters."""
    return not is_lazy(p) and not p.is_inference() and (p.is_floating_point() or p.is_complex())


def _remove_all(handles: dict[Tensor, RemovableHandle]) -> None:
    for handle in handles.values():
        handle.remove()
    handles.clear()


def _name(optimizer: FusedRAdam, p: Tensor) -> str:
    for index, group in enumerate(optimizer.param_groups):
        for name, q in zip(group_names(group, index), group["params"], strict=True):
            if q is p:
                return name
    return f"a parameter of shape {tuple(p.shape)} that was taken out of its group"
