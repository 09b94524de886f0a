"""Steps each parameter during the backward pass and frees its gradient as soon as autograd has completed it.

The gradients of all parameters then never exist at once. A hook that torch calls for each complete gradient
(``register_post_accumulate_grad_hook``) launches the step of that parameter over its own bucket
(`radam_fused.state.per_param`). The cost of a hook does not depend on the number of parameters. `FusedRAdam.step`
steps the parameters that still have a gradient and ends the iteration.
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

from .bucketed_optimizer import BucketedOptimizer
from .device import capturing
from .numerics.tensor_checks import group_names
from .optimizer import FusedRAdam
from .state.bucket import Bucket
from .state.per_param import PerParamBuckets
from .step.collect import collect_bucket
from .step.data_parallel import refuse_averaged
from .step.host_scalars import HostScalars, Scalars
from .step.interrupts import Deferred
from .step.launch import Launch
from .step.run import run_alone
from .step.scalars import DeviceScalars, DeviceTables, check_capture, on_device


def step_in_backward(optimizer: FusedRAdam, accumulate: int = 1) -> StepInBackward:
    """Makes an optimizer step each parameter in the backward pass, once its gradient is complete, and free that.

    The training loop stays as it is: ``optimizer.step()`` steps the parameters that still have a gradient, frees these
    gradients as well, runs the optimizer's hooks, and ends the iteration. Parameters, state and step counts are bit for
    bit those of the same optimizer stepping after the backward pass::

        optimizer = FusedRAdam(model.parameters(), lr=1e-3)
        step_in_backward(optimizer)
        for batch in batches:
            model(batch).backward()  # no parameter has a gradient afterwards
            optimizer.step()
            scheduler.step()

    With ``accumulate=N`` a parameter is stepped in its Nth backward pass since the last ``optimizer.step()`` and keeps
    its gradient until then; ``optimizer.step()`` steps it earlier. Every complete gradient is stepped:
    ``optimizer.zero_grad()`` can only drop gradients that are still being accumulated.

    Copies and pickles of the optimizer step in the ordinary way. Turning this on or off copies existing moments into
    other buffers. An error in a step is raised by ``backward``; each parameter has then either been stepped, or is
    unchanged and still has its gradient.

    Args:
        optimizer: without ``max_grad_norm``, ``flatten``, ``offload`` and ``differentiable``.
        accumulate: the number of backward passes in an iteration.

    Returns:
        A handle. Its ``remove()``, or leaving it as a context manager, makes the optimizer step in the ordinary way.

    Raises:
        TypeError: an optimizer that is no `FusedRAdam`, or ``accumulate`` is no integer.
        ValueError: ``accumulate`` below 1, or an option of the optimizer that needs all gradients at once.
        RuntimeError: an optimizer that steps in backward already. Later, ``backward`` raises it for more than
            ``accumulate`` passes since the last ``optimizer.step()``; ``optimizer.step()`` raises it when called by
            `torch.amp.GradScaler`, and for a new gradient of a parameter that was stepped in backward.
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
    before = optimizer._bucket_manager
    hooks = Hooks(optimizer, accumulate)
    optimizer._in_backward = hooks
    try:
        optimizer._bucket_manager = optimizer._make_buckets()
        hooks.follow(optimizer)
    except BaseException:
        hooks.remove()
        optimizer._in_backward = None
        optimizer._bucket_manager = before  # the next step rebuilds it if optimizer.state shows other views by now
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
    """The handle that `step_in_backward` returns; also a context manager."""

    def __init__(self, optimizer: FusedRAdam, hooks: Hooks) -> None:
        self._optimizer = optimizer
        self._hooks = hooks

    def remove(self) -> None:
        """Makes the optimizer step in the ordinary way from now on; does nothing if it already does.

        Gradients that are being accumulated stay. Parameters that were stepped in this iteration have no gradient.
        """
        if self._optimizer._in_backward is self._hooks:
            self._hooks.remove()
            self._optimizer._in_backward = None
            self._optimizer._bucket_manager = self._optimizer._make_buckets()

    def __enter__(self) -> StepInBackward:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


class Hooks:
    """The hooks on an optimizer's parameters, and which of them were stepped in the current iteration.

    The hooks hold a weak reference to the optimizer and are removed when it is collected.
    """

    def __init__(self, optimizer: FusedRAdam, accumulate: int) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._accumulate = accumulate
        self._handles: dict[Tensor, RemovableHandle] = {}
        weakref.finalize(optimizer, _remove_all, self._handles).atexit = False
        self._followed: Any = None
        self._checked = False
        """Whether `refuse_averaged` has seen the parameters."""
        self._lazy = False
        """Whether a parameter is uninitialised (torch's lazy modules): it gets its hook once it has a shape."""
        self._passes: dict[Tensor, int] = {}
        """How many backward passes have completed each parameter's gradient in this iteration."""
        self._stepped: set[Tensor] = set()
        """Parameters that were stepped in this iteration."""
        self._tables: dict[Any, DeviceTables] = {}
        """By stream, so that no stream waits for another one's upload; by device, the tables that were used last."""
        self._lock = threading.Lock()  # each device runs its part of a backward pass in a thread of its own

    def follow(self, optimizer: BucketedOptimizer) -> None:
        """Registers hooks on the parameters of the optimizer's groups, and removes those of other parameters."""
        params = dict.fromkeys(p for group in optimizer.param_groups for p in group["params"])
        for p in [p for p in self._handles if p not in params]:
            self._handles.pop(p).remove()
        self._lazy = any(map(is_lazy, params))
        for p in params:
            if p not in self._handles and _may_get_gradients(p):
                self._handles[p] = self._register(p)
        self._checked = False
        self._followed = optimizer._bucket_manager.name if optimizer._bucket_manager is not None else None

    def _register(self, p: Tensor) -> RemovableHandle:
        frozen = not p.requires_grad
        if frozen:  # torch registers no hook on a frozen parameter, but keeps a registered one
            p.requires_grad_(True)
        try:
            return p.register_post_accumulate_grad_hook(self._on_gradient)
        finally:
            if frozen:
                p.requires_grad_(False)

    def remove(self) -> None:
        """Removes all hooks."""
        _remove_all(self._handles)

    @staticmethod
    def check_group(group: Mapping[str, Any], index: int) -> None:
        """Raises ValueError for a parameter group that cannot be stepped in backward."""
        if any(
            hasattr(p, "_unpadded_unsharded_size") for p in group["params"]
        ):  # torch/distributed/fsdp/_flat_param.py
            raise ValueError(
                f"param_groups[{index}] has flat parameters of FullyShardedDataParallel (FSDP1), whose gradients are "
                "shards only after the backward pass: use_orig_params=True or fully_shard lets them be stepped in it"
            )
        if group["differentiable"]:
            raise ValueError(
                f"param_groups[{index}]: differentiable = True: must be False to step in backward, which frees what "
                "the step would be differentiated by. Step after the backward pass"
            )

    # During a backward pass.

    def _on_gradient(self, p: Tensor) -> None:
        """Steps the parameter and frees its gradient; torch calls this when the gradient is complete."""
        optimizer = self._optimizer()
        if optimizer is None:
            return
        with self._lock, torch.no_grad():
            if not self._checked:
                refuse_averaged(self._handles, lambda q: _name(optimizer, q))
                self._checked = True
            passes = self._passes.get(p, 0)
            if passes == self._accumulate:
                raise RuntimeError(self._too_many(optimizer, p))
            self._passes[p] = passes + 1
            if passes + 1 == self._accumulate:
                with Deferred():  # an interrupt must not leave the gradient of a stepped parameter
                    if self._step(optimizer, p):
                        p.grad = None
                        self._stepped.add(p)

    def _step(self, optimizer: FusedRAdam, p: Tensor) -> bool:
        """Steps one parameter; False, without a step, if its state was edited: `FusedRAdam.step` then steps it."""
        manager = optimizer._bucket_manager
        assert isinstance(manager, PerParamBuckets)
        bucket = manager.bucket_of(p, optimizer.param_groups, optimizer.state)
        if bucket is None:
            return False
        launch = collect_bucket(manager, bucket)
        if launch is None:
            raise RuntimeError(
                f"{manager.names()[p]} has no gradient any more: a hook that ran before has taken it. "
                "One optimizer alone can step a parameter in backward"
            )
        run_alone(manager, launch, self._scalars(optimizer, manager, bucket))
        return True

    def _scalars(self, optimizer: FusedRAdam, manager: PerParamBuckets, bucket: Bucket) -> Scalars:
        """Where one parameter's scalars are computed: `choose_scalars` of step/scalars.py, for one bucket."""
        check_capture([bucket], optimizer.param_groups)
        group = optimizer.param_groups[bucket.groups[0]]
        if not (bucket.counts.on_device or group["capturable"] or on_device(group["lr"])):
            return HostScalars(optimizer.param_groups)
        bucket.count_on_device()
        return DeviceScalars(optimizer.param_groups, self._tables_on(bucket.device), None, 0.0, None, None)

    def _tables_on(self, device: torch.device) -> DeviceTables:
        """The current stream's tables; in the capture of a CUDA graph those used last, which need no upload."""
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
        """Raises RuntimeError if GradScaler calls the step, or if a stepped parameter has a new gradient."""
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
        if optimizer._bucket_manager is None or optimizer._bucket_manager.name != self._followed or self._lazy:
            self.follow(optimizer)

    def zeroed(self) -> None:
        """Forgets the accumulated gradients, after `FusedRAdam.zero_grad`; stepped parameters stay stepped."""
        self._passes = dict.fromkeys(self._stepped, self._accumulate)


def _may_get_gradients(p: Tensor) -> bool:
    """False for tensors that get no gradient and no hook: integers, inference tensors, uninitialised parameters."""
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
