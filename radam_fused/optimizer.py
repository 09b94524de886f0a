"""`FusedRAdam`: torch.optim's conventions around the fused step.

The walk from here to a kernel: `FusedRAdam.step` asks each `Bucket` (layout.py) which segments have gradients, makes
the rows of their (group, step) pairs (rows.py, rectification.py), and calls the backend's operator (ops.py) once each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT, StateDict

from .backends import backend_for, check_name
from .checkpoint import check_state_dict, unwrap, wrap
from .checks import check_gradients, check_parameter
from .flat import FlatBuffers
from .layout import Bucket, Plan
from .ops import STEP
from .options import GROUP_DEFAULTS, check_group, check_later
from .rows import Row, step_row


class FusedRAdam(Optimizer):
    r"""RAdam (Liu et al., `arXiv 1908.03265 <https://arxiv.org/abs/1908.03265>`_) as one fused pass.

    A drop-in for `torch.optim.RAdam`: the same arguments with the same meaning, and state_dicts that load both ways.

    Args:
        params: parameters, named parameters or groups, as every torch optimizer takes them; float32, float64, float16
            or bfloat16. 16-bit parameters keep float32 moments, float64 ones compute in float64.
        lr: learning rate, a float or a one-element tensor, at least 0.
        betas: decay rates of the two moments, each in [0, 1).
        eps: joins the denominator ``sqrt(v) + eps``, as in torch.optim.RAdam.
        weight_decay: coupled (added to the gradient) unless ``decoupled_weight_decay``.
        decoupled_weight_decay: shrink the parameters by ``1 - lr * weight_decay`` instead.
        maximize: ascend.
        capturable, differentiable: not supported yet.
        foreach: accepted as torch.optim's; the fused pass takes the place of either implementation.
        rho_threshold: the step is rectified where ``rho_t`` exceeds this; 5 as torch, 4 as the paper.
        degenerated_to_sgd: before that, step by the momentum alone (True) or leave the parameters (False).
        rectification: ``"first_order"`` (the paper's equation 6), ``"exact"`` (its Theorem 1) or ``"none"`` (Adam, or
            AdamW with ``decoupled_weight_decay``).
        backend: ``"auto"``, ``"triton"``, ``"cpu"`` or ``"reference"``; under ``"auto"`` the environment variable
            ``RADAM_FUSED_BACKEND`` decides, then the device. See `radam_fused.available_backends`.
        flatten: make parameters and gradients views of flat buffers: a step then costs the host the same for one
            tensor or ten thousand. Gradients stay allocated, and `zero_grad` is one memset.
        state_dtype, master_weights, rounding, max_grad_norm, zero_grads: not supported yet beyond their defaults.

    Raises:
        ValueError, TypeError: an argument or a parameter that is not allowed, before anything is written.
        NotImplementedError: a value that a later version will honour.
        RuntimeError: a backend that cannot run here, with the reason.
    """

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
        rectification: str = "first_order",
        backend: str = "auto",
        flatten: bool = False,
        state_dtype: torch.dtype = torch.float32,
        master_weights: str | None = None,
        rounding: str = "nearest",
        max_grad_norm: float | None = None,
        zero_grads: bool = False,
    ) -> None:
        given = locals()
        defaults = {name: given[name] for name in GROUP_DEFAULTS}
        check_group(defaults)
        check_later(given)
        if not isinstance(flatten, bool):
            raise TypeError(f"flatten = {flatten!r}: must be True or False")
        self._backend = check_name(backend)
        self._flatten = flatten
        self._buckets: list[Bucket] = []
        super().__init__(params, defaults)
        self._forget_layout()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as torch.optim does; on an error the optimizer is as it was."""
        super().add_param_group(param_group)
        index = len(self.param_groups) - 1
        try:
            group = self.param_groups[index]
            check_group(group)
            if len(set(group["params"])) < len(group["params"]):
                raise ValueError(f"param_groups[{index}]: a parameter appears twice; list each one once")
            for p, name in zip(group["params"], _group_names(group, index), strict=True):
                check_parameter(p, name)
                backend_for(p.device.type, self._backend)
        except Exception:
            self.param_groups.pop()
            raise
        if self._buckets:
            self._unplaced += [(p, index) for p in group["params"]]
            self._note_membership()
            self._place_flat()

    # Layout: which bucket each parameter lives in.

    def _forget_layout(self) -> None:
        """Starts the layout anew from the groups and ``self.state``, whose tensors the new buckets will adopt."""
        self._buckets = []
        self._flat: dict[Bucket, FlatBuffers] = {}
        self._unplaced = [(p, index) for index, group in enumerate(self.param_groups) for p in group["params"]]
        self._note_membership()
        self._note_state()
        self._place_flat()

    def _note_membership(self) -> None:
        self._membership = self._current_membership()

    def _current_membership(self) -> list[int]:
        """Something that changes when a caller edits ``param_groups``; in constant time a group under ``flatten``."""
        if self._flatten:
            return [len(group["params"]) for group in self.param_groups]
        return [*map(id, chain.from_iterable([group["params"] for group in self.param_groups]))]

    def _note_state(self) -> None:
        self._noted_state = self.state, len(self.state)

    def _place_flat(self) -> None:
        if self._flatten:
            self._place([(p, index) for p, index in self._unplaced if p.requires_grad or p.grad is not None])

    def _place_arrivals(self) -> None:
        """Gives a bucket to every parameter that has its first gradient, and to those that may get one with it."""
        if not any(p.grad is not None for p, _ in self._unplaced):
            return
        self._place([(p, index) for p, index in self._unplaced if p.requires_grad or p.grad is not None])

    def _place(self, arrivals: list[tuple[Tensor, int]]) -> None:
        kinds: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, int]]] = {}
        for p, index in arrivals:
            kinds.setdefault((p.device, p.dtype), []).append((p, index))
        names = self._names() if self._flatten else {}
        for members in kinds.values():
            bucket = Bucket([p for p, _ in members], [index for _, index in members])
            for segment, p in enumerate(bucket.params):
                if self.state.get(p):
                    bucket.adopt(segment, self.state[p])
                    self.state[p].update(bucket.state(segment))
            if self._flatten:
                self._flat[bucket] = FlatBuffers(bucket, [names[p] for p in bucket.params])
            self._buckets.append(bucket)
        placed = {p for p, _ in arrivals}
        self._unplaced = [(p, index) for p, index in self._unplaced if p not in placed]

    def _names(self) -> dict[Tensor, str]:
        return {
            p: name
            for index, group in enumerate(self.param_groups)
            for p, name in zip(group["params"], _group_names(group, index), strict=True)
        }

    # The step.

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step for every parameter that has a gradient.

        Args:
            closure: reevaluates the model and returns the loss, as in torch.optim.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError, TypeError, ValueError: a gradient that does not fit (sparse, of another shape, dtype or on
                another device), before anything is written.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        state, count = self._noted_state
        if state is not self.state or count != len(self.state) or self._membership != self._current_membership():
            self._forget_layout()
        if self._unplaced:
            self._place_arrivals()

        launches = [(bucket, *launch) for bucket in self._buckets if (launch := self._collect(bucket)) is not None]
        if len(launches) > 1:  # a single launch checks its own gradients before it writes
            for _, plan, grads in launches:
                self._check(plan.params, grads)
        for bucket, plan, grads in launches:
            self._launch(bucket, plan, grads)
        return loss

    def _collect(self, bucket: Bucket) -> tuple[Plan, list[Tensor]] | None:
        """The plan of this step for a bucket and the gradients of its segments, or None where there are none."""
        if self._flatten:
            missing = self._flat[bucket].collect()
            plan = bucket.plan(missing)
            return (plan, []) if plan.present else None
        grads = [p.grad for p in bucket.params]
        missing = [index for index, grad in enumerate(grads) if grad is None]
        plan = bucket.plan(missing)
        return (plan, [grad for grad in grads if grad is not None] if missing else grads) if plan.present else None  # type: ignore[return-value]

    def _rows(self, plan: Plan) -> Tensor:
        """The rows of a launch, float64 (rows, 9) on the CPU."""
        known: dict[tuple[Any, ...], Row] = {}
        rows = []
        for index, taken in plan.rows:
            group = self.param_groups[index]
            key = taken, *(group[name] for name in GROUP_DEFAULTS)
            if len(plan.rows) == 1 or isinstance(group["lr"], Tensor):
                rows.append(step_row(group, taken + 1))
            else:
                if key not in known:
                    known[key] = step_row(group, taken + 1)
                rows.append(known[key])
        return torch.tensor(rows, dtype=torch.float64)

    def _launch(self, bucket: Bucket, plan: Plan, grads: list[Tensor]) -> None:
        rows = self._rows(plan)
        params, starts, row_of = plan.params, plan.starts, plan.row_of
        if self._flatten:
            params, grads, starts, row_of = self._flat[bucket].runs(plan)
        op = STEP[backend_for(bucket.device.type, self._backend)]
        try:
            op(params, grads, bucket.exp_avg, bucket.exp_avg_sq, starts, row_of, rows)
        except Exception:
            self._check(params, grads)  # a clearer error, where a gradient is at fault
            raise
        torch.autograd.graph.increment_version(params)
        bucket.count_step(plan)
        if plan.first:
            self._show_state(bucket, plan)

    def _show_state(self, bucket: Bucket, plan: Plan) -> None:
        """Lets ``self.state`` show the parameters that have taken their first step, as torch.optim does."""
        for segment, p in zip(plan.present, plan.params, strict=True):
            if not self.state.get(p):
                self.state[p] = bucket.state(segment)
        plan.first = False
        self._note_state()

    def _check(self, params: Iterable[Tensor], grads: list[Tensor]) -> None:
        names = self._names()
        params = list(params)
        check_gradients(params, grads, [names.get(p, "a flat buffer") for p in params])

    # What else torch.optim's optimizers do.

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Resets the gradients: as torch.optim, or under ``flatten`` with one memset a bucket (they are never None)."""
        if not self._flatten:
            super().zero_grad(set_to_none)
            return
        for flat in self._flat.values():
            flat.zero_grads()
        for p, _ in self._unplaced:
            if p.grad is not None:
                p.grad = None if set_to_none else torch.zeros_like(p.grad)

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Loads a state_dict of this optimizer or of torch.optim.RAdam; one that does not fit changes nothing.

        Raises:
            ValueError, TypeError: a shape, a count or a hyperparameter that does not fit.
            NotImplementedError: a hyperparameter that a later version will honour.
        """

        def check_and_wrap(_: Optimizer, loaded: StateDict) -> StateDict:
            check_state_dict(loaded, self.param_groups)
            return wrap(loaded)

        # Registered last, so that it sees what the caller's own pre-hooks have made of the state_dict.
        handle = self.register_load_state_dict_pre_hook(check_and_wrap)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_backend": self._backend, "_flatten": self._flatten}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        unwrap(self.state)
        for group in self.param_groups:
            for name, default in GROUP_DEFAULTS.items():
                group.setdefault(name, default)
        self._forget_layout()
        if not self._flatten:
            self._place([(p, index) for p, index in self._unplaced if self.state.get(p)])


def _group_names(group: dict[str, Any], index: int) -> list[str]:
    """How errors name a group's parameters: by the names the caller gave, or by their place."""
    return [
        f"parameter {name!r}" if isinstance(name, str) else f"param_groups[{index}]['params'][{k}]"
        for k, name in enumerate(group.get("param_names") or [None] * len(group["params"]))
    ]
