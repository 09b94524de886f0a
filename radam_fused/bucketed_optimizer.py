"""The conventions of torch.optim for an optimizer whose state is stored in buckets: all but ``step``."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim import Optimizer
from torch.optim.optimizer import StateDict

from .modes import fake_mode_of, in_own_modes
from .numerics.state_format import StateFormat
from .options import GROUP_DEFAULTS
from .param_groups import check_new_group
from .state.bucket_manager import BucketManager
from .state.checkpoint import check_mapping, check_state_dict, pack, unwrap, wrap
from .state.float32_weight import float32_weight
from .state.per_param import PerParamBuckets
from .state.transaction import Transaction
from .step.bucket_operators import BucketOperators, backends_of

if TYPE_CHECKING:
    from .gradient_release import Hooks


class BucketedOptimizer(Optimizer):
    """Groups, gradients and state_dicts of an optimizer that keeps its state in a `BucketManager`.

    A subclass sets the options that are declared here before it calls the constructor, and then makes the buckets.
    """

    _backend: str
    _storage: StateFormat
    _flatten: bool
    _differentiable: bool
    _offload: bool
    _wide: dict[str, Any]
    """The options of the whole optimizer, as given."""
    _bucket_manager: BucketManager | None
    _fake_mode: Any = None  # that of the parameters, where these are fake tensors
    _within: Transaction | None = None  # what `load_state_dict` is a part of
    _in_backward: Hooks | None = None  # while `radam_fused.step_in_backward` is on; copies and pickles leave it behind

    @in_own_modes
    def _make_buckets(self, attach: bool = False) -> BucketManager:
        kind = BucketManager if self._in_backward is None else PerParamBuckets
        operators = BucketOperators(self._backend, self._storage, self._offload)
        options = operators, self._flatten, attach, self._offload, self._storage
        return kind(self.param_groups, self.state, *options, self._bucket_manager, self._within)

    @property
    def backend(self) -> dict[str, str]:
        """What steps the parameters: a backend's name for each device and dtype, as ``{"cuda:0 bfloat16": "triton"}``.

        Before the first step it is the backend that would be used. Reading it changes and warns of nothing.
        """
        if self._differentiable:
            return backends_of(self.param_groups, {}, "reference", False)
        ops = {} if self._bucket_manager is None else self._bucket_manager.ops
        return backends_of(self.param_groups, ops, self._backend, self._offload)

    def __repr__(self) -> str:
        options = {**self._wide, "backend": self.backend or self._backend}
        name = type(self).__name__
        lines = [f"{name} (", *(f"    {option}: {value}" for option, value in sorted(options.items()))]
        return "\n".join([*lines, super().__repr__().partition("\n")[2]])

    @_disable_dynamo
    @in_own_modes
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as torch.optim does; on an error the optimizer is as it was."""
        if self._bucket_manager is not None:  # takes in what user code has edited, before what is noted here hides it
            self._bucket_manager.refresh(self.param_groups, self.state)
        index = len(self.param_groups)
        with Transaction() as transaction:
            transaction.on_failure(self.param_groups.__delitem__, slice(index, None))
            super().add_param_group(param_group)
            group = self.param_groups[index]
            differentiable = self.defaults["differentiable"]
            check_new_group(group, index, differentiable, self._backend, self._storage, self._offload, self._wide)
            self._fake_mode = self._fake_mode or fake_mode_of(group["params"])
            if self._in_backward is not None:
                self._in_backward.check_group(group, index)
            if self._bucket_manager is not None:
                self._bucket_manager.add(index, transaction)
            if self._in_backward is not None:
                self._in_backward.follow(self)

    def _current_buckets(self) -> BucketManager:
        if self._bucket_manager is None:
            self._bucket_manager = self._make_buckets()
        else:
            self._bucket_manager.refresh(self.param_groups, self.state)
        return self._bucket_manager

    @_disable_dynamo
    @in_own_modes
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Resets the gradients: as torch.optim, or under ``flatten`` with one memset a bucket (they are never None)."""
        if self._bucket_manager is None or not self._flatten:
            super().zero_grad(set_to_none)
            if self._in_backward is not None:
                self._in_backward.zeroed()
            return
        with torch.autograd.profiler.record_function(f"Optimizer.zero_grad#{type(self).__name__}.zero_grad"):
            self._bucket_manager.zero_grads(set_to_none)

    @_disable_dynamo
    def state_dict(self) -> StateDict:
        """As torch.optim.RAdam's: `step`, `exp_avg` and `exp_avg_sq` of each parameter, in plain dicts.

        State in other forms keeps them, under names of their own (docs/precision.md).
        """
        if self._bucket_manager is not None:
            self._bucket_manager.refresh_thoroughly(self.param_groups, self.state)
        return pack(super().state_dict(), self.param_groups)

    @_disable_dynamo
    def load_state_dict(self, state_dict: StateDict) -> None:
        """Loads a state_dict of this optimizer or of torch.optim.RAdam; one that does not fit changes nothing.

        State in the form that this optimizer stores it in is taken over bit for bit, any other is converted. Options
        that the state_dict does not have stay as they are, and so do those of the whole optimizer.

        Raises:
            ValueError, TypeError: a shape, a count or a hyperparameter that does not fit.
        """
        check_mapping(state_dict)

        def check_and_wrap(_: Optimizer, loaded: StateDict) -> StateDict:
            check_state_dict(loaded, self.param_groups)
            return wrap(loaded, self.param_groups)

        hooks = self._optimizer_load_state_dict_pre_hooks
        with Transaction() as transaction:
            transaction.keep_attributes(self)
            # For this call alone, and last: it sees what the caller's own pre-hooks have made of the state_dict.
            self._optimizer_load_state_dict_pre_hooks = OrderedDict([*hooks.items(), (-1, check_and_wrap)])
            self._within = transaction
            super().load_state_dict(state_dict)
            self._within = None
            self._optimizer_load_state_dict_pre_hooks = hooks

    @_disable_dynamo
    @torch.no_grad()
    def float32_weight(self, param: Tensor) -> Tensor:
        """A copy of a parameter in the precision in which it is stepped: what to average and to export.

        Under ``master_weights`` a 16-bit parameter is the rounded copy of a float32 weight, which the next step begins
        with. The weights of a model, for a file or for an average of them::

            weights = {name: optimizer.float32_weight(p) for name, p in model.named_parameters()}

        Args:
            param: a parameter; also one without master weights, frozen, or of no optimizer, which is copied as it is.

        Returns:
            A new float32 tensor on the parameter's device; float64 for a float64 parameter. Of a DTensor it is a
            DTensor with the same mesh and placements. Before the first step it is the parameter itself, widened.
        """
        return float32_weight(param, self.state.get(param, {}))

    def __getstate__(self) -> dict[str, Any]:
        names = "_backend", "_flatten", "_differentiable", "_offload", "_storage", "_wide"
        return {**super().__getstate__(), **{name: getattr(self, name) for name in names}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._bucket_manager = None
        unwrap(self.state)
        for group in self.param_groups:
            for name, default in GROUP_DEFAULTS.items():
                group.setdefault(name, default)
        self._fake_mode = fake_mode_of(p for group in self.param_groups for p in group["params"])
        self._bucket_manager = None if self._differentiable else self._make_buckets()
