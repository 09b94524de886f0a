"""The operators that step each bucket of an optimizer: its backend's on the bucket's device, or the host's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..backends import backend_for, preferred
from ..backends.fake_tensors import faked
from ..backends.offload import Offloader
from ..backends.ops import OPERATORS, Operators
from ..numerics.state_format import StateFormat
from ..numerics.tensor_checks import may_step
from ..param_groups import check_new_params
from ..state.bucket import Bucket
from .pointer_table import may_use_pointers


class BucketOperators:
    """Chooses the operators of one optimizer's buckets: what `radam_fused.state.bucket_builder.Backend` asks for.

    Args:
        backend: what `radam_fused.backends.check_name` returned.
        storage: how the state is stored.
        offload: whether it is kept on the host, and stepped there.

    Attributes:
        offloaders: by device, what steps offloaded buckets: those of one device share its staging memory.
    """

    def __init__(self, backend: str, storage: StateFormat, offload: bool) -> None:
        self._backend = backend
        self._storage = storage
        self._offload = offload
        self.offloaders: dict[torch.device, Offloader] = {}

    def check_params(self, params: Iterable[Tensor], names: Callable[[], dict[Tensor, str]]) -> None:
        """Raises for a parameter that the backend cannot step: `radam_fused.param_groups.check_new_params`."""
        check_new_params(params, names, self._backend, self._storage, self._offload)

    def operators_for(self, bucket: Bucket) -> Operators:
        """The operators that step a bucket."""
        ops = self._on(bucket.device)
        if bucket.is_fake:
            ops = ops._replace(scalars=faked(ops).scalars) if self._offload else faked(ops)
        return ops if may_use_pointers(bucket, ops) else ops._replace(has_pointer_path=False)

    def _on(self, device: torch.device) -> Operators:
        if not self._offload:
            return OPERATORS[backend_for(device.type, self._backend)]
        if device not in self.offloaders:
            self.offloaders[device] = Offloader(device)
        return self.offloaders[device].operators


def backends_of(
    groups: Iterable[dict[str, Any]], ops: Mapping[Bucket, Operators], backend: str, offload: bool
) -> dict[str, str]:
    """For each device and dtype of the parameters that a step may write, the backend that steps them.

    Args:
        groups: the optimizer's ``param_groups``.
        ops: the operators of each bucket that there is. Parameters without one are those that have not been stepped.
        backend: what `radam_fused.backends.check_name` returned.
        offload: whether the state is kept on the host, and stepped there.
    """
    found = {f"{bucket.device} {_short(bucket.dtype)}": operators.backend for bucket, operators in ops.items()}
    for p in (p for group in groups for p in group["params"] if may_step(p)):
        kind = f"{p.device} {_short(p.dtype.to_real())}"
        if kind not in found:
            found[kind] = "cpu" if offload else preferred(p.device.type)[0] if backend == "auto" else backend
    return found


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
