"""Makes buckets for parameters, and changes nothing that exists: `BucketManager` puts them to use."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..device import NEW_STATE, capturing
from ..dtensor import is_sharded
from ..numerics.layout import as_real, rng_length, rng_offset_of, segment_starts, whole_numel
from ..numerics.overlaps import layers
from ..numerics.state_format import StateFormat
from ..numerics.tensor_checks import may_step
from .bucket import Bucket
from .checkpoint import check_entry, has_state
from .flat_buffers import FlatBuffers
from .membership import check_flatten, names_of
from .tracked_dict import DirtyFlag
from .views import warn_of_shared


class Backend(Protocol):
    """Who steps the buckets of an optimizer, which gives it: `radam_fused.step.bucket_operators.BucketOperators`."""

    def check_params(self, params: Iterable[Tensor], names: Callable[[], dict[Tensor, str]]) -> None:
        """Raises TypeError or ValueError for a parameter that it cannot step, by name."""

    def operators_for(self, bucket: Bucket) -> Any:
        """The operators (`radam_fused.backends.ops.Operators`) that step a bucket."""


class NewBucket(NamedTuple):
    """A bucket that nothing refers to yet."""

    bucket: Bucket
    ops: Any
    flat: FlatBuffers | None


class BucketBuilder:
    """Makes the buckets of one optimizer.

    Args:
        backend: who steps the buckets.
        storage: how the state is stored.
        flatten: make flat buffers of parameters and gradients, too.
        offload: keep the state on the CPU.
        per_param: make a bucket for each parameter.
        dirty: shared by all buckets.
    """

    def __init__(
        self, backend: Backend, storage: StateFormat, flatten: bool, offload: bool, per_param: bool, dirty: DirtyFlag
    ) -> None:
        self.backend = backend
        self._storage = storage
        self._flatten = flatten
        self._offload = offload
        self._per_param = per_param
        self._dirty = dirty

    def build(
        self,
        groups: list[dict[str, Any]],
        state: dict[Tensor, Any],
        new_params: list[tuple[Tensor, int]],
        attach: bool,
        replaced: Sequence[Bucket],
        absent: list[Tensor],
    ) -> list[NewBucket]:
        """Buckets for new parameters, with the state that these have.

        Args:
            groups: the optimizer's ``param_groups``.
            state: its ``state``.
            new_params: the parameters, and the indices of their groups.
            attach: under ``flatten``, give parameters without a gradient a zero one.
            replaced: buckets that have held some of them, and know their exact step counts.
            absent: parameters that have been stepped and are in no group now.

        Raises:
            RuntimeError, TypeError, ValueError: a parameter or its state that does not fit, by name.
        """
        if not new_params:
            return []
        for device in {p.device for p, _ in new_params}:
            if capturing(device):
                raise RuntimeError(NEW_STATE)
        names = names_of(groups)
        may = (p for p, _ in new_params if may_step(p))
        self.backend.check_params(may, lambda: names)
        kinds: dict[Hashable, list[tuple[Tensor, int]]] = {}
        layer_of = layers([p for p, _ in new_params])
        for k, (p, index) in enumerate(new_params):
            kinds.setdefault((self._bucket_key(p), layer_of.get(k, 0)), []).append((p, index))
        if self._flatten:
            check_flatten(names, [p for p, _ in new_params])
        for p, _ in new_params:
            if has_state(state.get(p)):
                check_entry("optimizer.state", names[p], p, state[p])
                warn_of_shared(state[p], names[p])
        counts = {p: (bucket, k) for bucket in replaced for k, p in enumerate(bucket.params)}
        whole_offsets = self._rng_offsets(groups, absent) if self._storage.uses_random_bits else {}
        made = []
        for members in kinds.values():
            params = [p for p, _ in members]
            rng_offsets = None
            if self._storage.uses_random_bits:
                rng_offsets = [rng_offset_of(p, whole_offsets[p]) for p in params]
            bucket = Bucket(params, [i for _, i in members], self._offload, self._storage, rng_offsets, self._dirty)
            ops = self.backend.operators_for(bucket)
            flat = FlatBuffers(bucket, [names[p] for p in params], attach) if self._flatten else None
            for segment, p in enumerate(params):
                if has_state(state.get(p)):
                    was = counts.get(p)
                    count = None if was is None else was[0].counts.exact(was[1], state[p]["step"])
                    bucket.load_state(segment, state[p], count)
            if any(groups[index]["capturable"] for index in bucket.groups):
                bucket.count_on_device()
            made.append(NewBucket(bucket, ops, flat))
        return made

    def _bucket_key(self, p: Tensor) -> Hashable:
        """The same for parameters that share a bucket."""
        return p if self._per_param else (p.device, p.dtype, is_sharded(p), self._moments(p))

    def _moments(self, p: Tensor) -> torch.dtype:
        return self._storage.moment_dtype(as_real(p).dtype, whole_numel(p))

    def _rng_offsets(self, groups: list[dict[str, Any]], absent: list[Tensor]) -> dict[Tensor, int]:
        """Where the random numbers of each whole parameter begin: it depends on its place among all, not on buckets.

        Parameters that have been stepped and are in no group now come first: DeepSpeed's ZeRO puts one parameter after
        another into a group alone, and they must not all use the same random bits.
        """
        params = [*absent, *(p for group in groups for p in group["params"])]
        return dict(zip(params, segment_starts([rng_length(p) for p in params])[0], strict=True))
