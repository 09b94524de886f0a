"""`FusedRAdam`: torch.optim's conventions around the fused step.

A step is four calls: `collect` (step/run.py) finds what to launch over each `Bucket` (state/bucket.py), `partial_sums`
(step/grad_norm.py) reads the gradients where their norm is clipped, `choose_scalars` (step/scalars.py) says whether the
host or the device computes the scalars, and `launch` (step/run.py) steps each bucket. docs/design.md follows the calls
from there to an element.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import ParamsT

from .backends import BackendName, check_host, check_name
from .bucketed_optimizer import BucketedOptimizer
from .modes import in_own_modes
from .numerics.state_format import MasterWeights, Rounding, StateFormat
from .option_hints import explained
from .options import (
    GROUP_DEFAULTS,
    WIDE,
    check_flag,
    check_group,
    check_max_grad_norm,
    check_offload,
    check_wide,
    refuse_with_differentiable,
)
from .rectification import Kind
from .state.bucket_manager import BucketManager
from .step import compiled
from .step.differentiable import step as differentiable_step
from .step.grad_norm import GlobalNorms, partial_sums
from .step.grad_scaler import asked_of_another
from .step.parts import WHOLE, sharing_group
from .step.parts import given as given_to
from .step.profiling import RectificationState, observable, rectification_state
from .step.run import collect, launch
from .step.scalars import DeviceTables, choose_scalars


def _loss_of(closure: Callable[[], Any]) -> Any:
    with torch.enable_grad():
        return closure()


class FusedRAdam(BucketedOptimizer):
    r"""RAdam (Liu et al., `arXiv 1908.03265 <https://arxiv.org/abs/1908.03265>`_) as one fused pass.

    A drop-in for `torch.optim.RAdam`: the same arguments with the same meaning, and state_dicts that load both ways.

    A parameter group may have its own value of ``lr`` to ``maximize``, ``capturable``, ``rho_threshold``,
    ``degenerated_to_sgd``, ``rectification`` and ``seed``; the others are options of the whole optimizer.

    Args:
        params: parameters, named parameters or groups, as every torch optimizer takes them; float32, float64, float16
            or bfloat16. 16-bit parameters keep float32 moments, float64 ones compute in float64. Frozen parameters may
            be of any dtype and layout: an error names one only where it gets a gradient.
        lr: learning rate, a float or a one-element tensor, at least 0.
        betas: decay rates of the two moments, each in [0, 1).
        eps: joins the denominator ``sqrt(v) + eps``, as in torch.optim.RAdam.
        weight_decay: coupled (added to the gradient) unless ``decoupled_weight_decay``.
        decoupled_weight_decay: take ``lr * weight_decay`` of the parameters from them instead.
        maximize: ascend.
        capturable: make the scalars of a step on the device, so that a CUDA graph that captures ``step`` replays it
            right. A tensor ``lr`` on the device may then be changed between replays. Take one step before the capture:
            a first step inside of one is refused. Other graphs and eager steps may come between two replays.
        differentiable: let autograd run through the step, on torch operations (``backend="reference"``): slower, with a
            graph kept for every step. Not with capturable, flatten, offload or max_grad_norm.
        foreach: accepted as torch.optim's; the fused pass takes the place of either implementation.
        rho_threshold: the step is rectified where ``rho_t`` exceeds this; 5 as torch, 4 as the paper.
        degenerated_to_sgd: before that, step by the momentum alone (True) or leave the parameters (False).
        rectification: ``"first_order"`` (the paper's equation 6), ``"exact"`` (its Theorem 1) or ``"none"`` (Adam, or
            AdamW with ``decoupled_weight_decay``).
        backend: ``"auto"``, ``"cuda"``, ``"triton"``, ``"cpu"`` or ``"reference"``; under ``"auto"`` the environment
            variable ``RADAM_FUSED_BACKEND`` decides, then the device. See `radam_fused.available_backends`.
        flatten: make parameters and gradients views of flat buffers: a step is then one segment, whatever the number
            of tensors. For many small tensors: autograd adds to gradients that stay allocated, and `zero_grad` is one
            memset, which ``zero_grads`` saves.
        state_dtype: what the moments are stored in: ``torch.float32``; ``torch.bfloat16`` or ``torch.float16``, 4 bytes
            a parameter; or ``torch.int8``, 2.03 bytes: in blocks of 256, parameters below 4,096 elements in float32.
            Only float32 goes with float64 parameters, whose moments are float64. See docs/precision.md.
        master_weights: for float16 and bfloat16 parameters: ``"fp32"`` keeps a copy in float32; ``"split"`` the 16 bits
            that make one of a bfloat16, for the same steps at 2 bytes less; ``"kahan"`` what rounding has left, in 16
            bits. Other parameters need none.
        rounding: ``"stochastic"`` rounds 16-bit parameters that have no master weights so that the mean is exact.
        max_grad_norm: clip the gradients' global norm to this, above 0, as `torch.nn.utils.clip_grad_norm_` before the
            step, but without writing them: they stay as they are. Infinity measures the norm and clips nothing. Over
            several ranks see ``grad_norm_group``.
        zero_grads: the step leaves zeros in the gradients that it has read. No two parameters may then share one.
        offload: keep the moments in the host's memory (pinned, for parameters on a GPU) and compute the step there,
            with the ``cpu`` backend: 8 bytes a parameter less on the GPU (16 for float64), for a step that is bound by
            the bus, and by the host's memory, and during which the host waits. ``backend`` is ``"auto"`` or ``"cpu"``.
        seed: of the random numbers of stochastic rounding (moments of 16 or 8 bits are always rounded so), from 0 to
            2^32 - 1; a parameter group's, and so in the state_dict. A run repeats bit for bit.

    Attributes:
        last_grad_norm: with ``max_grad_norm``, the norm of the last step's gradients before clipping: a float64 scalar
            on their device (on the CPU under ``offload``); None before the first step.
        grad_norm_group: a `torch.distributed.ProcessGroup` over which that norm is summed where the parameters do not
            show it: pipeline stages, say. The meshes of DTensors show it, and `ZeroRedundancyOptimizer` sets it for its
            local optimizer. Under it each rank counts its own plain parameters. Loading a state_dict keeps it; process
            groups stay out of copies. Without it plain parameters are taken for whole and the same on every rank, as
            under DistributedDataParallel. Shards that carry a mark (FSDP1's, DeepSpeed's, Megatron-LM's, fairscale's,
            experts) are an error of the first step, which names the tool's own way to clip; docs/trainers.md has those
            that look like any parameter.

    `torch.amp.GradScaler` works as with torch's fused optimizers: the step unscales as it reads, and where infinities
    were found it leaves parameters and state as they were, without the host ever waiting. It leaves the gradients
    unscaled, with the bits of ``scaler.unscale_``, also in a step that was skipped (zeros with ``zero_grads``).

    Raises:
        ValueError, TypeError: an argument or a parameter that is not allowed, before anything is written.
        RuntimeError: a backend that cannot run here, with the reason.
    """

    @_disable_dynamo
    @explained
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        rho_threshold: float = 5.0,
        degenerated_to_sgd: bool = True,
        rectification: Kind = "first_order",
        backend: BackendName = "auto",
        flatten: bool = False,
        state_dtype: torch.dtype = torch.float32,
        master_weights: MasterWeights | None = None,
        rounding: Rounding = "nearest",
        max_grad_norm: float | None = None,
        zero_grads: bool = False,
        offload: bool = False,
        seed: int = 0,
    ) -> None:
        given = locals()
        defaults = {name: given[name] for name in GROUP_DEFAULTS}
        check_group(defaults)
        storage = StateFormat(state_dtype, master_weights, rounding)
        storage.check()
        check_flag("flatten", flatten)
        check_flag("zero_grads", zero_grads)
        check_max_grad_norm(max_grad_norm)
        check_flag("offload", offload)
        if differentiable:
            refuse_with_differentiable(given)
        self._wide = {name: given[name] for name in WIDE}
        self._backend = check_name(backend)
        if offload:
            check_offload(self._backend, flatten, capturable, state_dtype)
            check_host()
        self._offload = offload
        self._storage = storage
        self._flatten = flatten
        self._differentiable = differentiable
        self._zero_grads = zero_grads
        self._max_grad_norm = max_grad_norm
        self.last_grad_norm: Tensor | None = None
        self.grad_norm_group: Any = None
        self._compiled_norm: Tensor | None = None
        self._tables = DeviceTables()
        self._norms = GlobalNorms()
        self._keys = -1
        self._bucket_manager: BucketManager | None = None
        super().__init__(params, defaults)
        self._made_with = WHOLE if max_grad_norm is None else given_to(self.param_groups)
        if self._made_with.handed_on:
            self.grad_norm_group = sharing_group()
        if not differentiable:
            self._bucket_manager = self._make_buckets(attach=True)

    def _traced_step(self, closure: Callable[[], Any] | None = None) -> Any:
        """What torch.compile traces in place of `step`."""
        loss = None if closure is None else _loss_of(closure)
        with torch.set_grad_enabled(self._differentiable):
            if self._differentiable:
                self._check_keys()
                differentiable_step(self.param_groups, self.state, self._zero_grads)
            else:
                compiled.run(self)
        return loss

    @observable(traced=_traced_step)
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step for every parameter that has a gradient.

        Args:
            closure: reevaluates the model and returns the loss, as in torch.optim.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError, TypeError, ValueError: a gradient that does not fit (sparse, of another shape, dtype or on
                another device), a parameter that has changed under its state, or a value in ``param_groups`` that is
                not allowed (but a learning rate on a device, which is not waited for), before anything is written.
        """
        loss = None if closure is None else _loss_of(closure)
        if (self._fake_mode is not None or torch.is_inference_mode_enabled()) and not self._differentiable:
            self._step_in_own_modes()
            return loss
        before = torch.is_grad_enabled()
        try:
            torch._C._set_grad_enabled(self._differentiable)  # the context manager makes five calls of it
            if self._differentiable:
                self._check_keys()
                differentiable_step(self.param_groups, self.state, self._zero_grads)
            else:
                self._step()
        finally:
            torch._C._set_grad_enabled(before)
        return loss

    def _check_keys(self) -> None:
        """Raises where user code has given a group an option of the whole optimizer; looks where a key is new."""
        keys = sum(map(len, self.param_groups))
        if keys != self._keys:
            for index, group in enumerate(self.param_groups):
                check_wide(group, self._wide, f"param_groups[{index}]: ")
            # Where a tool keeps such options in the groups, with the optimizer's values, these may change.
            self._keys = -1 if any(name in group for group in self.param_groups for name in WIDE) else keys

    @in_own_modes
    def _step_in_own_modes(self) -> None:
        with torch.no_grad():
            self._step()

    def _step(self) -> None:
        if sum(map(len, self.param_groups)) != self._keys:
            self._check_keys()
        if self._in_backward is not None:
            self._in_backward.before_step(self)
        manager = self._current_buckets()
        clips = self._max_grad_norm is not None
        norm = self._norms.find(manager, self.grad_norm_group, self._made_with) if clips else None
        amp = self.__dict__  # where GradScaler leaves what it knows while it calls `step`
        grad_scale, found_inf = amp.get("grad_scale"), amp.get("found_inf")
        if norm is None:
            launches = collect(manager, sure=clips)
            sums = partial_sums(launches, manager.ops, manager.names) if clips else None
        else:
            with norm.taking_part():
                launches = collect(manager, sure=True)
                counted = partial_sums(launches, manager.ops, manager.names, norm)
            sums = norm.total(counted)  # also on a rank that has nothing to step
            found_inf = norm.joined(sums, found_inf)
        if launches:
            scalars = choose_scalars(
                manager.buckets, self.param_groups, self._tables, self._max_grad_norm, sums, grad_scale, found_inf
            )
            # Gradients that hooks have stepped are freed.
            zero_grads = self._zero_grads and self._in_backward is None
            launch(manager, launches, scalars, zero_grads, None if self._zero_grads else grad_scale)
            self.last_grad_norm = scalars.grad_norm
        elif norm is not None and sums is not None:
            self.last_grad_norm = norm.of(sums, grad_scale)
        if self._in_backward is not None:
            self._in_backward.after_step(self, launches)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Asked by torch.amp.GradScaler, which then sets ``grad_scale`` and ``found_inf`` around `step`."""
        return not self._differentiable and not asked_of_another(self)

    def _init_group(
        self, guards: tuple[Any, ...], params: list[Tensor], grads: list[Tensor], tensors: list[Tensor]
    ) -> tuple[Any, ...]:
        """What torch.compile runs eagerly while it traces a step, and again when one of the guards is another."""
        if self._in_backward is not None:
            raise NotImplementedError(
                "torch.compile: step() under step_in_backward has little left to do; leave it out"
            )
        self._check_keys()
        manager = self._current_buckets()
        if self._max_grad_norm is not None:
            if self._norms.find(manager, self.grad_norm_group, self._made_with) is not None:
                raise NotImplementedError(
                    "max_grad_norm over several ranks under torch.compile: step outside of the compiled function"
                )
            if self._compiled_norm is None:  # one permanently: it is among what a compiled step is guarded by
                device = next((b.device for b in manager.buckets), torch.device("cpu"))
                self._compiled_norm = torch.zeros(1, dtype=torch.float64, device=device)
            self.last_grad_norm = self._compiled_norm[0]
        return compiled.choose(
            manager, self._tables, self.param_groups, self._backend, self._compiled_norm, params, grads, tensors
        )

    @_disable_dynamo
    def rectification_state(self) -> list[RectificationState]:
        """For logging: t, rho_t, r_t and the branch of each group's last step, see `radam_fused.step.profiling`."""
        return rectification_state(self.param_groups, self.state)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_zero_grads": self._zero_grads, "_max_grad_norm": self._max_grad_norm}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.last_grad_norm = self._compiled_norm = None
        if "_wide" in state:  # a copy or a pickle, which process groups stay out of; load_state_dict keeps what it has
            self.grad_norm_group = None
            self._made_with = WHOLE if self._max_grad_norm is None else given_to(self.param_groups)
        self._tables = DeviceTables()
        self._norms = GlobalNorms()
        self._keys = -1
